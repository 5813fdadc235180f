"""Crosscoder: one set of latents for several places, each with a decoder of its own.

Lindsey, Templeton, Marcus, Conerly, Batson & Olah 2024, "Sparse crosscoders for cross-layer features and model diffing":
`z = ReLU(Σ_a W_enc,a x_a + b)`, `x̂_a = W_dec,a z + b_a`, loss `Σ_a ‖x_a - x̂_a‖² + λ Σ_i z_i Σ_a ‖w_i,a‖`. The places may be
layers of one model, or the same layer of two models read on the same tokens (keys such as "a/resid_post.8"). Activations of
the places stand side by side, so the encoder is one linear map and the decoder one matrix, whose blocks are the places'.

* With `k`, the k latents of largest `z_i Σ_a ‖w_i,a‖` are kept instead of the L1 penalty (the selection that BatchTopK
  crosscoders use, here of each token), and AuxK revives dead ones. What the saved model does at inference is the same.
* A decoder row has unit norm as a whole, and its shares of the places are free: loss and selection do not change when a
  latent is multiplied by c and its row divided by c, so this only fixes that choice and leaves relative norms alone.
* `input_norm="scalar"` has a scale for each place. Loss, norms and penalties are in those units, in which each place counts
  by its width; reconstructions are in the places' own. Norms of each token would mix the places and are refused.
* Deviations: the encoder subtracts the decoder bias unless `pre_bias=False` (the encoder bias can undo it); initial decoder
  rows are random unit rows and not 0.1 long; λ is in the units of [`StandardConfig`].
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_sae import SAE, Norm
from .modeling_standard import dense, warm_up
from .modeling_topk import auxk, largest, shorten_encoder_rows
from .outputs import Pass, TrainingState
from .several_places import fitted_scales, require_scales, scaled
from .sparse_code import SparseCode


@strict_config
class CrosscoderConfig(SAEConfig):
    """[`SAEConfig`] of two places or more, plus what keeps latents few. `d_in` is the sum of the places' widths.

    Args:
        widths (`list` of `int`, *optional*): of the places in `hook_in`; `None` is equal shares of `d_in`.
        input_scales (`list` of `float`, *optional*): the factor of each place under `input_norm="scalar"`; training sets it.
        k (`int`, *optional*): latents per token; `None` is ReLU with the L1 penalty.
        l1_coefficient (`float`): λ, where there is no `k`, in the units of [`StandardConfig`].
        l1_warmup_share (`float`): share of the training steps over which λ rises from 0.
        aux_coefficient (`float`), k_aux (`int`, *optional*): of AuxK, where there is a `k`, as in [`TopKConfig`].
    """

    model_type = "hf_sae_crosscoder"
    has_no_defaults_at_init = True  # places have to be named

    widths: list[int] | None = None
    input_scales: list[float | int] | None = None
    k: int | None = None
    l1_coefficient: float | int = 0.1
    l1_warmup_share: float | int = 0.05
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    @property
    def place_widths(self) -> list[int]:
        """Width of each place in `hook_in`."""
        n = len(self.places_in)
        return [self.d_in // n] * n if self.widths is None else self.widths

    def validate_places(self) -> None:
        """Two places or more, whose widths add up to `d_in`, and a norm that does not mix them."""
        places = self.places_in
        if not isinstance(self.hook_in, list) or len(set(places)) < max(2, len(places)):
            raise ValueError(
                f"hook_in={self.hook_in!r}: a crosscoder reads two different places or more, as in "
                "hook_in=['resid_post.0', 'resid_post.1']. Of one place take StandardConfig or TopKConfig."
            )
        if self.is_transcoder:
            raise ValueError(
                f"hook_out={self.hook_out!r}: a crosscoder writes the places that it reads. Leave hook_out out, or take "
                "CrossLayerConfig."
            )
        if sum(self.place_widths) != self.d_in or len(self.place_widths) != len(places) or min(self.place_widths) < 1:
            raise ValueError(
                f"d_in={self.d_in} and widths={self.widths} for {len(places)} places: give the width of each place in "
                "widths, and their sum as d_in."
            )
        if self.input_norm not in ("none", "scalar"):
            raise ValueError(
                f"input_norm={self.input_norm!r} would take the norm of a token over all places. Use 'scalar', which has a "
                "scale for each place, or 'none'."
            )
        require_scales(self.input_scales, len(places), "input_scales", self.input_norm)
        if self.input_scales is not None and self.input_scale != 1:
            raise ValueError(f"input_scale={self.input_scale} and input_scales={self.input_scales}: give one of them.")

    def validate_sparsity(self) -> None:
        """Counts of latents lie between 1 and `d_sae`, weights are finite, shares are shares."""
        require_between(self, 1, self.d_sae, "k", "k_aux")
        require_between(self, 0, 1, "l1_warmup_share")
        require_amounts(self, "l1_coefficient", "aux_coefficient")


class CrosscoderSAE(SAE):
    """An autoencoder of several places with shared latents."""

    config: CrosscoderConfig
    paper: ClassVar[str] = (
        "Lindsey et al. 2024, Sparse crosscoders for cross-layer features and model diffing, "
        "transformer-circuits.pub/2024/crosscoders"
    )
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")

    def __init__(self, config: CrosscoderConfig) -> None:
        super().__init__(config)
        self.post_init()

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents: all that are positive, or the `config.k` that write most."""
        if self.config.k is None:
            return torch.relu(pre_activations)
        return self._select(pre_activations, self.config.k).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[Tensor | SparseCode, Tensor]:
        """Dense latents, or a fixed-k code; and pre-activations."""
        pre = self.pre_activations(x)
        return (torch.relu(pre) if self.config.k is None else self._select(pre, self.config.k)), pre

    def _select(self, pre: Tensor, k: int) -> SparseCode:
        """The latents with the `k` largest products of activation and sum of decoder norms."""
        full = torch.promote_types(pre.dtype, torch.float32)
        size = self.place_norms().detach().sum(-1).to(full)
        code = largest(self, pre.to(full) * size, k, None)
        values = (code.values / size[code.indices].clamp_min(torch.finfo(full).tiny)).to(pre.dtype)
        return SparseCode(values, code.indices, None, code.d_sae)

    def normalize(self, hidden_states: Tensor) -> tuple[Tensor, Norm | None]:
        """The input `[..., d_in]` with each place in its own units; no side information."""
        scales = self.config.input_scales
        if scales is None:
            return super().normalize(hidden_states)
        return scaled(hidden_states.to(self.decoder.weight.dtype), self.config.place_widths, scales), None

    def to_output_units(self, delta: Tensor, norm: Norm | None = None) -> Tensor:
        """A difference of decoder outputs `[..., d_in]` in the units of each place."""
        scales = self.config.input_scales
        if scales is None:
            return super().to_output_units(delta, norm)
        return scaled(delta, self.config.place_widths, scales, inverse=True)

    def in_loss_units(self, error: Tensor) -> Tensor:
        """Errors `[..., d_in]` with each place in its own units, so that none drowns the others."""
        scales = self.config.input_scales
        return error if scales is None else scaled(error, self.config.place_widths, scales)

    def fit_scale(self, x: Tensor) -> None:
        """A scale for each place: mean variance 1 per dimension."""
        self.config.input_scale, self.config.input_scales = 1.0, fitted_scales(x, self.config.place_widths)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`λ Σ_i z_i Σ_a ‖w_i,a‖`, or AuxK."""
        if self.config.k is not None:
            return auxk(self, result)
        written = (dense(result.latents) * self.place_norms().sum(-1)).sum(-1).mean()
        strength = self.config.l1_coefficient * warm_up(self.config.l1_warmup_share, result.state)
        return {"l1": strength * self.dictionary.sum(written) / math.sqrt(result.state.normaliser)}

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; with `k`, encoder rows are shortened as in [`TopKSAE`]."""
        super().initialize_from(x, target, state)
        if self.config.k is not None:
            shorten_encoder_rows(self, x)

    def place_norms(self) -> Tensor:
        """`[d_sae, places]`: the length of each latent's decoder row at each place, in units of its scale."""
        parts = self.decoder.weight.split(self.config.place_widths, dim=-1)
        return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)

    @torch.no_grad()
    def relative_norms(self, place: str) -> Tensor:
        """`[d_sae]`: a latent's decoder norm at one place over the sum at all, `‖w_a‖ / (‖w_a‖ + ‖w_b‖)` of two.

        Near 1 the latent is that place's own, near 0 it is absent there, near 1/2 (of two) it is shared.

        Raises:
            ValueError: for a place that the crosscoder does not read.
        """
        norms = self.place_norms()
        return norms[:, self._number(place)] / norms.sum(-1).clamp_min(torch.finfo(norms.dtype).tiny)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """What stands side by side, `[..., d_in]`, by place: `{place: [..., width]}`, views."""
        return dict(zip(self.config.places_in, x.split(self.config.place_widths, dim=-1), strict=True))

    @torch.no_grad()
    def fvu_by_place(self, hidden_states: Tensor) -> dict[str, float]:
        """Squared error over variance at each place, of activations `[tokens, d_in]`."""
        errors = self.split(hidden_states - self(hidden_states).reconstruction)
        means = {place: x.mean(0) for place, x in self.split(hidden_states).items()}
        spread = {place: (x - means[place]).square().sum() for place, x in self.split(hidden_states).items()}
        return {place: float(error.square().sum() / spread[place]) for place, error in errors.items()}

    def _number(self, place: str) -> int:
        if place not in self.config.places_in:
            raise ValueError(f"{place!r} is not read. Places: {', '.join(map(repr, self.config.places_in))}.")
        return self.config.places_in.index(place)
