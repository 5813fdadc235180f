"""The decoder of every architecture: the dictionary, read densely or by the latents that fire."""

import torch
from torch import Tensor, nn

from .dictionary import WholeDictionary
from .entry_ops import decode_entries
from .mostly_zero import decode as decode_mostly_zero
from .sparse_code import SparseCode
from .sparse_ops import decode as sparse_decode


class Decoder(nn.Module):
    """`latents @ weight + bias`, with a latent a contiguous row of `weight` `[d_sae, d_out]`."""

    def __init__(self, d_sae: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_sae, d_out))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.dictionary = WholeDictionary()
        self.learns_at_zero = False  # whether a latent that is zero has a gradient all the same

    def rows(self) -> Tensor:
        """`weight` as products read it; where a decoder has entries that do not exist, they have no gradient."""
        return self.weight

    def forward(self, latents: Tensor | SparseCode | None = None) -> Tensor:
        """`[..., d_out]`; the bias alone where no latents are given (so that offloading hooks see that read too)."""
        if latents is None:
            return self.bias
        weight = self.rows()
        if not isinstance(latents, SparseCode):
            latents = latents.to(weight.dtype)
            if torch.is_grad_enabled() and weight.requires_grad:
                rows = decode_mostly_zero(latents.reshape(-1, latents.shape[-1]), weight, self.learns_at_zero)
                return self.dictionary.sum(rows).view(*latents.shape[:-1], weight.shape[1]) + self.bias
            return self.dictionary.sum(latents @ weight) + self.bias
        if latents.offsets is None:
            k = latents.values.shape[-1]
            values, indices = latents.values.reshape(-1, k), latents.indices.reshape(-1, k)
            out = sparse_decode(values, indices, weight, latents.transposed)
        else:
            places = latents.indices, latents.offsets
            out = decode_entries(latents.values, *places, weight, latents.transposed)
        return self.dictionary.sum(out).view(*latents.shape, weight.shape[1]) + self.bias
