"""Which part of a dictionary a model holds: all of it, unless training shares the latents out among processes.

The architectures are written once, for a dictionary of which any part may be elsewhere. Everything that depends on more
latents than those at hand goes through this object: the k largest of all, sums over latents, and the gradients of
what every part reads. The object that shares a dictionary out is training's (`hf_sae.training.parallel`).
"""

from __future__ import annotations

import torch
from torch import Tensor


class WholeDictionary:
    """All latents are here: every operation gives what it was given."""

    whole = True
    first = 0  # which of all latents the first one here is

    def choose(self, values: Tensor, indices: Tensor, k: int, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The candidates here that are among the `k` largest of all latents.

        Args:
            values (`Tensor`): `[..., c]`, the pre-activations of the first ones here, at most `k`.
            indices (`Tensor`): `[..., c]`, their latents.
            k (`int`): how many of all.
            scores (`Tensor`, *optional*): `[..., c]`, what candidates are ranked by instead of their values.

        Returns:
            Values and latents, `[..., columns]`; a column that holds no chosen one has the value -inf.
        """
        return values, indices

    def among(self, values: Tensor, count: int) -> Tensor:
        """Which of the largest entries here are among the `count` largest of all tokens and latents: a mask `[c]`.

        Args:
            values (`Tensor`): `[c]`, the largest here, at most `count`; outside the graph.
            count (`int`): how many of all.
        """
        return torch.ones_like(values, dtype=torch.bool)

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all latents of what is known for those here; the gradient of each part is that of the sum."""
        return partial

    def copy(self, tensor: Tensor) -> Tensor:
        """A tensor that every part reads; its gradient is the sum over the parts."""
        return tensor

    def count(self, mask: Tensor) -> int:
        """How many of all latents are chosen by a mask of those here."""
        return int(mask.sum())

    def least(self, value: Tensor) -> Tensor:
        """The smallest over all parts of what is known for that here, entry by entry; outside the graph."""
        return value
