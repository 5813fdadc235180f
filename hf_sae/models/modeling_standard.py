"""Standard: a rectified linear encoder with an L1 penalty.

Bricken et al. 2023, "Towards Monosemanticity"; Cunningham et al. 2023 (arXiv 2309.08600): `z = ReLU(W_enc (x - b_dec) +
b_enc)`, loss `‖x - x̂‖² + λ Σ z_i ‖w_i‖`. What the saved model does at inference is the same. The penalty shrinks what
it keeps: on an orthonormal dictionary the minimiser is soft-thresholding, `ReLU(w·x - λ/2)`.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from .configuration_sae import SAEConfig, strict_config
from .modeling_sae import SAE
from .outputs import Pass, TrainingState
from .sparse_code import SparseCode


@strict_config
class StandardConfig(SAEConfig):
    """[`SAEConfig`] plus the strength of the penalty.

    Args:
        l1_coefficient (`float`): λ. Both the squared error and the latents are measured in units of the targets'
            total standard deviation, so that one λ means the same on every host.
        l1_warmup_share (`float`): share of the training steps over which λ rises from 0.
    """

    model_type = "hf_sae_standard"

    l1_coefficient: float | int = 0.1
    l1_warmup_share: float | int = 0.05

    def validate_l1(self) -> None:
        """λ is finite and not negative, the share a share."""
        if not 0 <= self.l1_coefficient < float("inf"):
            raise ValueError(f"l1_coefficient={self.l1_coefficient} must be a finite number, 0 or more.")
        if not 0 <= self.l1_warmup_share <= 1:
            raise ValueError(f"l1_warmup_share={self.l1_warmup_share} must be between 0 and 1.")


class StandardSAE(SAE):
    """An autoencoder whose latents are rectified pre-activations."""

    config: StandardConfig
    paper: ClassVar[str] = (
        "Cunningham et al. 2023, Sparse autoencoders find highly interpretable features, arXiv:2309.08600"
    )
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")

    def __init__(self, config: StandardConfig) -> None:
        super().__init__(config)
        self.post_init()

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`λ Σ z_i ‖w_i‖`, in the units of [`StandardConfig`]."""
        config = self.config
        l1 = contributions(self, result, dense(result.latents)).sum(-1).mean()
        strength = config.l1_coefficient * warm_up(config.l1_warmup_share, result.state)
        return {"l1": strength * self.dictionary.sum(l1)}


def dense(latents: Tensor | SparseCode) -> Tensor:
    """`[..., d_sae]`."""
    return latents.to_dense() if isinstance(latents, SparseCode) else latents


def contributions(sae: SAE, result: Pass, latents: Tensor, weighted: bool = True) -> Tensor:
    """`[tokens, d_sae]`: the length `z_i ‖w_i‖` of what each latent writes, in units of the targets' total standard deviation.

    Args:
        sae ([`SAE`]): whose latents they are.
        result ([`Pass`]): the pass they are of.
        latents (`Tensor`): `[tokens, d_sae]`.
        weighted (`bool`): with the norms of the decoder's rows; else `z_i` alone.
    """
    if weighted:
        latents = latents * torch.linalg.vector_norm(sae.decoder.weight, dim=-1)
    std = None if result.norm is None else (result.norm[0].new_zeros(()), result.norm[1])
    return sae.to_output_units(latents, std) / math.sqrt(result.state.normaliser)


def warm_up(share: float, state: TrainingState) -> float:
    """Rises from 0 to 1 over a share of the training steps."""
    steps = share * state.total_steps
    return min(1.0, (state.step + 1) / steps) if steps >= 1 else 1.0
