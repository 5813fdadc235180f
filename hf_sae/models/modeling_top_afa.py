"""top-AFA: as many latents as it takes for the code to be as long as what it codes for.

Lee et al. 2025, "Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality" (arXiv 2503.24277): if the
rows of the dictionary are nearly orthogonal, `‖z‖` is close to `‖x‖` (approximate feature activation). With `a = ReLU(W_enc (x -
b_dec))`, the energies `(a_i ‖w_i‖)²` are summed from the largest down, and k(x) is the number of them whose root of the sum is
nearest to `‖x - b_dec‖`; all latents are never chosen. Those k(x) latents are the code, in training and at inference: each token
by itself. The loss adds `λ (‖z‖ - ‖x‖)²` and AuxK.

* As in the authors' code the loss compares with `‖x‖`, the selection with `‖x - b_dec‖`, x being normalised; they normalise each
  token (`input_norm="layer_norm"`).
* λ is theirs: it belongs to a mean squared error per dimension of inputs of unit variance, into whose units both are put here.
* Deviations: the encoder has a bias; in a transcoder the lengths compared are those of the input.
* L0 is an outcome: an encoder whose pre-activations are too small keeps nearly every latent.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .configuration_sae import SAEConfig, require_amounts, strict_config
from .modeling_sae import SAE, Norm
from .modeling_standard import dense
from .modeling_topk import auxk, require_auxk
from .outputs import Pass, TrainingState


_SORTED_AT_ONCE = 1 << 24  # latents of tokens: sorting needs a key and an index for each


@strict_config
class TopAFAConfig(SAEConfig):
    """[`SAEConfig`] plus the strength of the penalty.

    Args:
        afa_coefficient (`float`): λ; the authors try 1/128 to 1/16.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2` (the authors: 512).
    """

    model_type = "hf_sae_top_afa"

    afa_coefficient: float | int = 1 / 32
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_weights(self) -> None:
        """Weights are not negative, `k_aux` a count of latents."""
        require_amounts(self, "afa_coefficient")
        require_auxk(self)


class TopAFASAE(SAE):
    """An autoencoder that chooses the number of latents of each token by their energy."""

    config: TopAFAConfig
    paper: ClassVar[str] = (
        "Lee et al. 2025, Evaluating and designing sparse autoencoders by approximating quasi-orthogonality, "
        "arXiv:2503.24277"
    )

    def __init__(self, config: TopAFAConfig) -> None:
        super().__init__(config)
        self.post_init()

    def activate(self, pre_activations: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Dense latents: the rectified pre-activations `[..., d_sae]` whose energies add up to `wanted`.

        Args:
            pre_activations (`Tensor`): `[..., d_sae]`.
            wanted (`Tensor`, *optional*): `[...]`, the length to come near to; all that are positive where it is not given.
        """
        latents = torch.relu(pre_activations)
        if wanted is None:
            return latents
        with torch.no_grad():
            kept = energy_mask(latents * torch.linalg.vector_norm(self.decoder.weight, dim=-1), wanted)
        return latents * kept

    def latents_of(self, x: Tensor, norm: Norm | None, state: TrainingState | None = None) -> tuple[Tensor, Tensor]:
        """Dense latents and pre-activations."""
        pre = self.pre_activations(x)
        centred = x - self.decoder() if self.config.subtracts_bias else x
        return self.activate(pre, torch.linalg.vector_norm(centred.detach(), dim=-1)), pre

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`λ d_out (‖z‖ - ‖x‖)²` over the loss's normaliser, in the units of the output; and AuxK."""
        latents = dense(result.latents)
        wide = torch.promote_types(latents.dtype, torch.float32)
        # a root has no slope at 0: a token without latents pulls at nothing
        length = latents.to(wide).square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny).sqrt()
        gap = length - torch.linalg.vector_norm(result.x.detach().to(wide), dim=-1, keepdim=True)
        unit = None if result.norm is None else (result.norm[0].new_zeros(()), result.norm[1])
        squares = self.to_output_units(gap, unit).square().mean()
        d_out = self.decoder.weight.shape[1]
        return {"afa": self.config.afa_coefficient * d_out * squares / result.state.normaliser} | auxk(self, result)


@torch.no_grad()
def energy_mask(lengths: Tensor, wanted: Tensor) -> Tensor:
    """`[..., n]`: which parts are taken, the longest first, until their joint length is nearest to `wanted`.

    Args:
        lengths (`Tensor`): `[..., n]`, of orthogonal parts; the joint length is the root of the sum of squares.
        wanted (`Tensor`): `[...]`.
    """
    n = lengths.shape[-1]
    wide = torch.promote_types(lengths.dtype, torch.float32)
    masks = []
    rows, goals = lengths.reshape(-1, n).to(wide), wanted.reshape(-1, 1).to(wide)
    at_once = max(1, _SORTED_AT_ONCE // n)
    for part, goal in zip(rows.split(at_once), goals.split(at_once), strict=True):
        ordered, order = part.sort(dim=-1, descending=True)
        joint = ordered.square().cumsum(-1).sqrt()
        joint[:, -1] = torch.inf  # all of them are never the answer
        count = (joint - goal).abs().argmin(dim=-1, keepdim=True) + 1
        taken = torch.arange(n, device=order.device) < count
        masks.append(torch.zeros_like(taken).scatter(-1, order, taken))
    return torch.cat(masks).view(lengths.shape)
