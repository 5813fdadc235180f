"""AbsTopK: the k pre-activations of largest magnitude of each token, with their signs.

Zhu et al. 2025, "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features" (arXiv 2510.00404): an encoder is one
proximal step from zero, `z = prox(W_enc (x - b_dec) + b_enc)`. The constraint `‖z‖₀ <= k, z >= 0` gives TopK; without the sign constraint the
step keeps the k largest `|u|` as they are. One latent then stands for both ends of an axis, where TopK needs two. What the
saved model does at inference is the same. A latent fires where it is not zero; dead ones are revived by AuxK, ranked by
`|u|` with signs kept.

Deviations: the authors' code selects over the flattened batch and has no encoder bias; here selection is by token, so that
training and inference agree, and the bias is that of the other architectures.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .configuration_sae import SAEConfig, strict_config
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
from .sparse_code import SparseCode


@strict_config
class AbsTopKConfig(SAEConfig):
    """[`SAEConfig`] plus the number of active latents.

    Args:
        k (`int`): latents per token.
        k_start (`int`, *optional*): train with so many at first, and fewer with every step down to `k`.
        k_anneal_share (`float`): share of the training steps over which `k_start` falls to `k`.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_abs_topk"

    k: int = 32
    k_start: int | None = None
    k_anneal_share: float | int = 0.1
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Every count of latents lies between 1 and `d_sae`."""
        require_annealing(self)
        require_auxk(self)


class AbsTopKSAE(SAE):
    """An autoencoder with exactly `config.k` selected latents per token, of either sign."""

    config: AbsTopKConfig
    paper: ClassVar[str] = (
        "Zhu et al. 2025, AbsTopK: Rethinking sparse autoencoders for bidirectional features, arXiv:2510.00404"
    )
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")

    def __init__(self, config: AbsTopKConfig) -> None:
        super().__init__(config)
        self.post_init()

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k` pre-activations of largest magnitude."""
        return largest(self, pre_activations, self.config.k, None, torch.abs, rectify=False).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code; `state.k` is used while a schedule changes it."""
        k = self.config.k if state is None or state.k is None else state.k
        return select_top_k(self, x, k, norm, torch.abs, rectify=False)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """AuxK by magnitude."""
        return auxk(self, result, by_magnitude=True)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then encoder rows are shortened until the first reconstructions have the right length."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x)

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """`state.k`: linear from `k_start` to `k` over the first `k_anneal_share` of the steps."""
        state.k = annealed_k(self.config, state)
