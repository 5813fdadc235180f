"""Multi-TopK: TopK that is trained at two sparsities, so that its code stays useful where k is changed afterwards.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), on progressive codes: the loss is
`L(k) + L(4k) / 8` (the 1/8 is recalled, not re-checked), with L(m) the error of the reconstruction from the m largest
pre-activations, rectified. A TopK model overfits to its k: with more latents its error rises again. What the saved model does
at inference is TopK; `config.k` of a loaded one may be set to any number up to `wide_multiplier * k`.

One selection of 4k latents serves both terms, and the gradient of the second reaches the encoder as that of the first does
(in some published code it trains the decoder alone). AuxK as in TopK, on the error of the k latents.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .configuration_sae import SAEConfig, require_amounts, strict_config
from .modeling_sae import SAE, Norm
from .modeling_topk import (
    annealed_k,
    auxk,
    largest,
    require_annealing,
    require_auxk,
    select_top_k,
    shorten_encoder_rows,
)
from .outputs import Pass, TrainingState
from .row_gradients import Transposed
from .sparse_code import SparseCode
from .sparse_ops import settle


@strict_config
class MultiTopKConfig(SAEConfig):
    """[`SAEConfig`] plus the two numbers of active latents.

    Args:
        k (`int`): latents per token.
        wide_multiplier (`int`): the second reconstruction has so many times `k` latents, at most `d_sae`.
        wide_weight (`float`): weight of its error; 0 is TopK.
        k_start (`int`, *optional*): train with so many at first, and fewer with every step down to `k`.
        k_anneal_share (`float`): share of the training steps over which `k_start` falls to `k`.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_multi_topk"

    k: int = 32
    wide_multiplier: int = 4
    wide_weight: float | int = 1 / 8
    k_start: int | None = None
    k_anneal_share: float | int = 0.1
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Every count of latents lies between 1 and `d_sae`; the second is the larger one."""
        require_annealing(self)
        require_auxk(self)
        require_amounts(self, "wide_weight")
        if self.wide_multiplier < 2:
            raise ValueError(
                f"wide_multiplier={self.wide_multiplier} must be at least 2; wide_weight=0 is plain TopK."
            )


class MultiTopKSAE(SAE):
    """A TopK autoencoder whose latents beyond the k largest are trained too."""

    config: MultiTopKConfig
    paper: ClassVar[str] = "Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093"
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")

    def __init__(self, config: MultiTopKConfig) -> None:
        super().__init__(config)
        self.post_init()

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k` largest pre-activations."""
        return largest(self, pre_activations, self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code; with a training state the code of `wide_multiplier` times as many latents is its `wider`."""
        k = self.config.k if state is None or state.k is None else state.k
        if state is None or not self.config.wide_weight:
            return select_top_k(self, x, k, norm)
        wide, pre = select_top_k(self, x, min(k * self.config.wide_multiplier, self.config.d_sae), norm)
        places = wide.values.detach().topk(min(k, wide.values.shape[-1]), dim=-1, sorted=False).indices
        values, indices = wide.values.gather(-1, places), wide.indices.gather(-1, places)
        values, indices = self.dictionary.choose(values, indices, k)
        d_sae = wide.d_sae
        transposed = None if wide.transposed is None else Transposed(indices.reshape(-1, indices.shape[-1]), d_sae)
        return SparseCode(settle(values), indices, None, d_sae, norm, transposed=transposed, wider=wide), pre

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """The weighted error of the wider code (which a state asks for), and AuxK."""
        wide = result.latents.wider if isinstance(result.latents, SparseCode) else None
        losses = {}
        if wide is not None:
            squares = self._squares(result, wide)
            losses["wide"] = self.config.wide_weight * squares.mean() / result.state.normaliser
        return losses | auxk(self, result)

    def _squares(self, result: Pass, code: SparseCode) -> Tensor:
        """`[...]`: the squared error of each token with another code, skip included."""
        if self._error_is_sparse(code):
            return self._sparse_error(result.x, code, result.target)[0]
        return (result.target - self._reconstruct(result.x, code, result.norm)).square().sum(-1)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then encoder rows are shortened until the first reconstructions have the right length."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x)

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """`state.k`: linear from `k_start` to `k` over the first `k_anneal_share` of the steps."""
        state.k = annealed_k(self.config, state)
