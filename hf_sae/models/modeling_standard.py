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
from .outputs import Pass
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
        state, latents = result.state, result.latents
        if isinstance(latents, SparseCode):
            latents = latents.to_dense()
        norms = torch.linalg.vector_norm(self.decoder.weight, dim=-1)
        std = None if result.norm is None else (result.norm[0].new_zeros(()), result.norm[1])
        l1 = self.to_output_units(latents * norms, std).sum(-1).mean() / math.sqrt(state.normaliser)
        warm_up = self.config.l1_warmup_share * state.total_steps
        strength = self.config.l1_coefficient * (min(1.0, (state.step + 1) / warm_up) if warm_up >= 1 else 1.0)
        return {"l1": strength * self.dictionary.sum(l1)}
