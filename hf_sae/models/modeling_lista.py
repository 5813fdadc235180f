"""LISTA: a few steps of sparse coding with learnt matrices, so that a few are enough.

Gregor & LeCun 2010, "Learning fast approximations of sparse coding": `z ← act(z S + u)` with `u = W_enc (x - b_dec) + b_enc`, from
`z = act(u)`. W_enc, S and b_enc (the thresholds, negated) are learnt; the activation is top-k with a ReLU or, with `k=None`, ReLU, the
non-negative soft threshold, under an L1 penalty. S lets latents that explain the same thing inhibit each other. `n_steps=1` is the TopK or ReLU SAE.
The saved model takes the same steps. S starts as ISTA's on the encoder rows E: `W_enc = ηE`, `S = I - ηEEᵀ`, `η <= 1 / ‖EEᵀ‖`.

S has `d_sae²` entries: 600 MB in float32 for 12288 latents, and as much for each of Adam's moments and the gradient. A step reads only the rows
of the latents that are on.

Reconstructed: training end to end on the reconstruction loss (the paper imitates the codes of a solver), AuxK as in TopK, and top-k as activation.
"""

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_ista import FIRST_ROUNDS, MARGIN, gram_norm
from .modeling_sae import SAE, Norm
from .modeling_standard import dense
from .modeling_topk import auxk, largest, shorten_encoder_rows
from .mostly_zero import decode as decode_mostly_zero
from .outputs import Pass, TrainingState
from .row_gradients import Transposed
from .sparse_code import SparseCode
from .sparse_ops import decode


@strict_config
class LISTAConfig(SAEConfig):
    """[`SAEConfig`] plus the steps and how they choose latents.

    Args:
        n_steps (`int`): times that the activation is applied.
        k (`int`, *optional*): latents per token; `None` is a soft threshold instead.
        l1_coefficient (`float`): weight of the penalty where `k` is `None`, in units of the targets' total standard deviation.
        aux_coefficient (`float`): weight of AuxK where `k` is given, and `k_aux` its latents, as in [`TopKConfig`].
    """

    model_type = "hf_sae_lista"

    n_steps: int = 3
    k: int | None = 32
    l1_coefficient: float | int = 0.1
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_steps(self) -> None:
        """At least one step; counts of latents lie between 1 and `d_sae`."""
        require_between(self, 1, 1000, "n_steps")
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_amounts(self, "l1_coefficient", "aux_coefficient")


class LISTASAE(SAE):
    """An autoencoder whose latents inhibit each other through a learnt matrix for a few steps."""

    config: LISTAConfig
    paper: ClassVar[str] = "Gregor and LeCun 2010, Learning fast approximations of sparse coding"
    # Adam's steps have one size for all entries, and the sum of d_sae small ones of S must not swamp a pre-activation: measured
    learning_rate_factors: ClassVar[dict[str, float]] = {"decoder.weight": 3.0, "inhibition": 0.3}

    def __init__(self, config: LISTAConfig) -> None:
        super().__init__(config)
        self.inhibition = nn.Parameter(torch.empty(config.d_sae, config.d_sae))  # S, from a latent (row) to a latent
        self.post_init()

    @torch.no_grad()
    def init_encoder(self) -> None:
        """ISTA on the encoder rows of [`SAE`]."""
        super().init_encoder()
        rows = self.encoder.weight.detach().clone()
        step_size = MARGIN / gram_norm(rows, None, FIRST_ROUNDS)[0]
        init.copy_(self.encoder.weight, step_size * rows)
        init.copy_(self.inhibition, torch.eye(len(rows)).to(rows) - step_size * rows @ rows.T)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents after all steps: they depend on the input by its pre-activations alone."""
        latents = self._steps(pre_activations, None)
        return dense(latents)

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[Tensor | SparseCode, Tensor]:
        """Latents after all steps, a code where `k` is given, and the pre-activations of the first."""
        pre = self.pre_activations(x)
        latents = self._steps(pre, norm)
        if isinstance(latents, SparseCode) and torch.is_grad_enabled():
            transposed = Transposed(latents.indices.reshape(-1, latents.indices.shape[-1]), latents.d_sae)
            latents = dataclasses.replace(latents, transposed=transposed)
        return latents, pre

    def _steps(self, pre: Tensor, norm: Norm | None) -> Tensor | SparseCode:
        latents = self._choose(pre, norm)
        for _ in range(self.config.n_steps - 1):
            latents = self._choose(pre + self._inhibited(latents).view(pre.shape), norm)
        return latents

    def _choose(self, values: Tensor, norm: Norm | None) -> Tensor | SparseCode:
        return torch.relu(values) if self.config.k is None else largest(self, values, self.config.k, norm)

    def _inhibited(self, latents: Tensor | SparseCode) -> Tensor:
        """`[tokens, d_sae]`: z S."""
        if isinstance(latents, SparseCode):
            k = latents.indices.shape[-1]
            return decode(latents.values.reshape(-1, k), latents.indices.reshape(-1, k), self.inhibition)
        rows = latents.reshape(-1, latents.shape[-1]).to(self.inhibition.dtype)
        if torch.is_grad_enabled():
            return decode_mostly_zero(rows, self.inhibition, learns_at_zero=False)
        return rows @ self.inhibition

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK where `k` is given, else the L1 penalty."""
        if self.config.k is not None:
            return auxk(self, result)
        latents = dense(result.latents)
        scale = None if result.norm is None else (result.norm[0].new_zeros(()), result.norm[1])
        total = self.to_output_units(latents.sum(-1, keepdim=True), scale).mean()
        return {"l1": self.config.l1_coefficient * total / math.sqrt(result.state.normaliser)}

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`TopKSAE`]: encoder rows of a length that gives reconstructions of the right one."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x)
