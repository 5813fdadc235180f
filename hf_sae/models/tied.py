"""What architectures share that read with the rows they write: the encoder is the transposed decoder."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_sae import SAEConfig
from .mostly_zero import encode as encode_mostly_zero


def require_shared_bias(config: SAEConfig) -> None:
    """For `validate_*` methods: what is coded is what the decoder bias leaves over.

    Raises:
        ValueError: for `pre_bias=False`.
    """
    if config.pre_bias is False:
        raise ValueError(
            f"pre_bias=False: {type(config).__name__} codes the input without the decoder bias, which decoding adds. Leave it out."
        )


class Tied:
    """Comes before [`SAE`] among the bases of a tied architecture, whose config has `tied = True`."""

    decoder: Any

    @staticmethod
    def make_encoder(config: SAEConfig) -> None:
        """There is none."""

    def init_encoder(self) -> None:
        """Nothing to set."""

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[..., d_sae]`: products of the decoder rows with a normalised input without its bias."""
        return self.correlations(x - self.decoder())

    def correlations(self, rows: Tensor) -> Tensor:
        """`[..., d_sae]`: products of the decoder rows with `[..., d_in]`; the gradient is sparse where the one that comes is."""
        weight = self.decoder.weight
        if not torch.is_grad_enabled():
            return F.linear(rows, weight)
        flat = rows.reshape(-1, rows.shape[-1])
        return encode_mostly_zero(flat, (weight, weight.new_zeros(len(weight))), None).view(
            *rows.shape[:-1], len(weight)
        )

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, d_sae]`, read-only: the transposed decoder."""
        return self.decoder.weight.detach().T

    @property
    def b_enc(self) -> Tensor:
        """`[d_sae]`: zeros."""
        return self.decoder.weight.new_zeros(len(self.decoder.weight))
