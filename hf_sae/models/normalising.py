"""The units of a model: how an input is normalised for the encoder, and how what the decoder gives is put back."""

import math
from typing import Any

import torch
from torch import Tensor

from .outputs import total_variance


Norm = tuple[Tensor, Tensor]


class Normalising:
    """The part of [`SAE`] that knows `config.input_norm` and `config.center_target`."""

    config: Any
    decoder: Any

    def normalize(self, hidden_states: Tensor) -> tuple[Tensor, Norm | None]:
        """The input as the encoder reads it, `[..., d_in]`, and what `decode` needs to undo it on each token."""
        hidden_states = hidden_states.to(self.decoder.weight.dtype)
        kind, eps = self.config.input_norm, self.config.norm_eps
        if kind == "scalar":
            return hidden_states * self.config.input_scale, None
        if kind == "none":
            return hidden_states, None
        mean = hidden_states.new_zeros(()) if kind == "unit_rms" else hidden_states.mean(-1, keepdim=True)
        x = hidden_states - mean
        if kind == "center":
            return x, (mean, torch.ones_like(mean))
        if kind == "layer_norm":  # eps is in the divisor only, as in the autoencoders that were published with it
            std = x.std(-1, keepdim=True)
            return x / (std + eps), (mean, std)
        # a token of zeros stays zero where eps is 0
        scale = (x.square().mean(-1, keepdim=True) + eps).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
        return x / scale, (mean.expand_as(scale), scale)

    def to_output_units(self, delta: Tensor, norm: Norm | None = None) -> Tensor:
        """A difference of decoder outputs `[..., d_out]` in the units of the hook point (no mean is added back)."""
        if self.config.is_transcoder or self.config.input_norm == "none":
            return delta
        if self.config.input_norm == "scalar":
            return delta / self.config.input_scale
        if norm is None:
            raise ValueError(
                f"input_norm={self.config.input_norm!r} needs norm=(mean, std) of each token: pass SparseCode.norm."
            )
        return delta * norm[1]

    def in_loss_units(self, error: Tensor) -> Tensor:
        """Errors or targets `[..., d_out]` in the units in which the loss counts them: those of the hook point."""
        return error

    def fit_scale(self, x: Tensor) -> None:
        """Sets the scale of `input_norm="scalar"` from a sample `[tokens, d_in]`: mean variance 1 per dimension."""
        self.config.input_scale = math.sqrt(self.config.d_in / total_variance(x))

    def comparable(self, target: Tensor) -> Tensor:
        """The part of a target `[..., d_out]` that is reconstructed: all of it, or without its mean (`center_target`)."""
        return target - target.mean(-1, keepdim=True) if self.config.center_target else target
