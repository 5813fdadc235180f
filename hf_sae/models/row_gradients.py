"""Gradients of dictionary weights as the factors they are made of.

The gradient of a weight `[d_sae, d]` under a sparse code is a product of two things no larger than the batch: which tokens
each latent fires on with what weight, and those tokens' rows. Written out it is as large as the dictionary, and an
optimiser would read it once. A weight whose optimiser works row by row (`hf_sae.training.optimizer`) therefore has a list
`row_gradients`, and the backward functions of `sparse_ops` put the factors there; any other weight gets its `grad` in full.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .kernels import bag_sum, kernels_for


class Transposed:
    """Which tokens each latent fires on: the transpose of a code, made when it is first needed.

    Args:
        indices (`Tensor`): latents, `[tokens, k]`, or `[entries]` of a list of entries.
        d_sae (`int`): number of latents.
        tokens (`Tensor`, *optional*): `[entries]`, the token of each entry of a list.
    """

    def __init__(self, indices: Tensor, d_sae: int, tokens: Tensor | None = None) -> None:
        self.indices, self.d_sae = indices.reshape(-1, 1 if tokens is not None else indices.shape[-1]), d_sae
        self._tokens = tokens

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        if kernels := kernels_for(self.indices):
            return kernels.transpose(self.indices, self.d_sae)
        flat = self.indices.reshape(-1)
        # narrow keys sort faster; stable: the order of a sum, and so its rounding, depends on nothing but the indices
        keys = flat.to(torch.int16 if self.d_sae < 2**15 else torch.int32)
        by_latent, order = keys.sort(stable=True)
        return order, torch.searchsorted(by_latent, torch.arange(self.d_sae + 1, device=flat.device, dtype=keys.dtype))

    @property
    def order(self) -> Tensor:
        """`[tokens * k]`: positions in the flattened indices, latent by latent and token by token within one."""
        return self._sorted[0]

    @property
    def offsets(self) -> Tensor:
        """`[d_sae + 1]`: where each latent's share of `order` begins."""
        return self._sorted[1]

    @cached_property
    def tokens(self) -> Tensor:
        """`[tokens * k]`: the token of each entry of `order`."""
        if self._tokens is not None:
            return self._tokens[self.order]
        return self.order // self.indices.shape[-1]

    def sum_rows(self, weights: Tensor, rows: Tensor, latents: slice | None = None) -> Tensor:
        """`[d_sae, d]`: for each latent the sum over its tokens t of `weights[t, j] * rows[t]`.

        Args:
            weights (`Tensor`): `[tokens, k]`.
            rows (`Tensor`): `[tokens, d]`.
            latents (`slice`, *optional*): a range of latents; all of them otherwise.
        """
        tokens, offsets, order = self.tokens, self.offsets, self.order
        if latents is not None and latents != slice(0, self.d_sae):
            offsets = offsets[latents.start : latents.stop + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            tokens, order, offsets = tokens[entries], order[entries], offsets - entries.start
        weights = weights.reshape(-1)[order].to(rows.dtype)
        if kernels := kernels_for(rows):
            return kernels.sum_rows(tokens, offsets, weights, rows)
        return bag_sum(tokens, rows, offsets, weights)

    def sum_values(self, weights: Tensor) -> Tensor:
        """`[d_sae]`: for each latent the sum of its `weights`, `[tokens, k]`."""
        if weights.device.type == "cpu":  # anywhere else index_add_ sums in an arbitrary order
            return weights.new_zeros(self.d_sae).index_add_(0, self.indices.reshape(-1), weights.reshape(-1))
        rows, ones = weights.reshape(-1, 1), torch.ones_like(weights).reshape(-1)
        if kernels := kernels_for(rows):
            return kernels.sum_rows(self.order, self.offsets, ones, rows).squeeze(1)
        return bag_sum(self.order, rows, self.offsets, ones).squeeze(1)


class RowGradient:
    """The gradient of a weight `[d_sae, d]` as the factors it is the product of: row f is the sum over the tokens t on which
    latent f fires of `weights[t, j] * rows[t]`. It is never larger than the batch, and any range of rows can be had."""

    def __init__(self, transposed: Transposed, weights: Tensor, rows: Tensor) -> None:
        self.transposed, self.weights, self.rows = transposed, weights, rows

    def range(self, latents: slice) -> Tensor:
        """Rows `latents` of the gradient."""
        return self.transposed.sum_rows(self.weights, self.rows, latents)

    def add_to(self, grad: Tensor, latents: slice) -> None:
        """Adds rows `latents` of the gradient to `grad`, which holds those rows."""
        grad += self.range(latents)


class SomeRows:
    """The gradient of a weight `[d_sae, d]` that is zero but in the rows `index` (ascending), which are `rows`."""

    def __init__(self, index: Tensor, rows: Tensor) -> None:
        self.index, self.rows = index, rows

    def add_to(self, grad: Tensor, latents: slice) -> None:
        """Adds rows `latents` of the gradient to `grad`, which holds those rows."""
        low, high = torch.searchsorted(self.index, self.index.new_tensor([latents.start, latents.stop])).tolist()
        grad.index_add_(0, self.index[low:high] - latents.start, self.rows[low:high].to(grad.dtype))


def sink_of(weight: Tensor) -> list[RowGradient | SomeRows] | None:
    """The list in which a weight collects gradients as factors, if its optimiser takes them so."""
    return getattr(weight, "row_gradients", None)


def give(sink: list[RowGradient | SomeRows] | None, gradient: RowGradient | SomeRows, like: Tensor) -> Tensor | None:
    """Hands a gradient to the weight's list, or returns it in full where there is none."""
    if sink is not None:
        sink.append(gradient)
        return None
    if isinstance(gradient, RowGradient):
        return gradient.range(slice(0, like.shape[0])).to(like.dtype)
    full = torch.zeros_like(like)
    gradient.add_to(full, slice(0, like.shape[0]))
    return full
