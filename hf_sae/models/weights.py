"""The matrices of a model under their customary names, read-only and transposed as other libraries have them."""

from typing import Any

from torch import Tensor

from .adapters import merged
from .errors import ConfigError


class Weights:
    """The part of [`SAE`] that shows encoder and decoder as `W_enc`, `b_enc`, `W_dec` and `b_dec`."""

    encoder: Any
    decoder: Any

    def linear_encoder(self) -> Any:
        """The encoder as one `nn.Linear`, adapters merged in.

        Raises:
            ConfigError: for an architecture whose encoder is no single matrix.
        """
        encoder = merged(self.encoder)
        if not isinstance(getattr(encoder, "weight", None), Tensor):
            parts = [f"encoder.{name}" for name, _ in encoder.named_children()] if encoder is not None else []
            raise ConfigError(
                f"{type(self).__name__} has no encoder matrix whose rows are latents: it reads with "
                f"{', '.join(parts) or 'the decoder'}. Use encode(x) or pre_activations(x), or those modules themselves."
            )
        return encoder

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, d_sae]`, read-only; a LoRA on the encoder is merged in. [`ConfigError`] where there is no such matrix."""
        return self.linear_encoder().weight.detach().T

    @property
    def b_enc(self) -> Tensor:
        """`[d_sae]`, read-only; a LoRA's bias is merged in. [`ConfigError`] where there is no encoder matrix."""
        return self.linear_encoder().bias.detach()

    @property
    def W_dec(self) -> Tensor:
        """`[d_sae, d_out]`, read-only."""
        return self.decoder.weight.detach()

    @property
    def b_dec(self) -> Tensor:
        """`[d_out]`, read-only."""
        return self.decoder.bias.detach()
