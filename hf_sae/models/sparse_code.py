"""`SparseCode`: the non-zero latents of many tokens.

* Two layouts: fixed-k rows (TopK) and compressed rows (thresholded architectures).
* A latent *fires* when it is non-zero: a zero that sits in a fixed-k row does not count, a negative value does.
* A pytree, so that it can leave a module under DDP and `torch.compile`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from .row_gradients import Transposed


@dataclass
class SparseCode:
    """The latents of `shape` tokens.

    Args:
        values (`Tensor`): `[*shape, k]` for fixed-k rows, `[nnz]` for compressed rows.
        indices (`Tensor`): `int64`, the latent of each value, same shape as `values`.
        offsets (`Tensor`, *optional*): `[rows + 1]`, where each row of a compressed code starts; `None` for fixed-k.
        d_sae (`int`): number of latents.
        norm (`tuple`, *optional*): per-token `(mean, std)`, each `[*shape, 1]`, that `decode` undoes (`layer_norm`).
        shape (`tuple`): leading shape, such as `[batch, sequence]`.
        transposed ([`Transposed`], *optional*): of `indices`, which all gradients of one training step share.
        wider ([`SparseCode`], *optional*): in training, a code of the same tokens with more latents, of which these are the largest.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor | None
    d_sae: int
    norm: tuple[Tensor, Tensor] | None = None
    shape: tuple[int, ...] = ()
    transposed: Transposed | None = field(default=None, repr=False, compare=False)
    wider: SparseCode | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.offsets is None:
            self.shape = tuple(self.values.shape[:-1])

    @classmethod
    def from_dense(cls, latents: Tensor, norm: tuple[Tensor, Tensor] | None = None) -> SparseCode:
        """The compressed code of dense latents `[..., d_sae]`; differentiable with respect to its values."""
        rows = latents.reshape(-1, latents.shape[-1])
        row, index = rows.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=rows.shape[0])
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return cls(rows[row, index], index, offsets, latents.shape[-1], norm, tuple(latents.shape[:-1]))

    @property
    def n_rows(self) -> int:
        """Number of tokens."""
        return math.prod(self.shape)

    def to_dense(self) -> Tensor:
        """Dense latents `[*shape, d_sae]`."""
        if self.offsets is None:
            dense = self.values.new_zeros(*self.shape, self.d_sae)
            return dense.scatter(-1, self.indices, self.values)
        dense = self.values.new_zeros(self.n_rows, self.d_sae)
        return dense.index_put((self.row_of_entry(), self.indices), self.values).view(*self.shape, self.d_sae)

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(rows, latents, values)` of the non-zero entries, each `[nnz]`, in row order."""
        values, indices = self.values.reshape(-1), self.indices.reshape(-1)
        fires = values != 0
        return self.row_of_entry()[fires], indices[fires], values[fires]

    def counts(self) -> Tensor:
        """`[rows]`: how many latents fire on each token."""
        if self.offsets is None:
            return (self.values != 0).sum(-1).reshape(-1)
        return torch.bincount(self.flat()[0], minlength=self.n_rows)

    def firing_counts(self) -> Tensor:
        """`[d_sae]`: on how many tokens each latent fires."""
        return torch.bincount(self.indices.reshape(-1)[self.values.reshape(-1) != 0], minlength=self.d_sae)

    def l0(self) -> Tensor:
        """Mean number of latents that fire on a token."""
        return (self.values != 0).sum() / max(self.n_rows, 1)

    def detach(self) -> SparseCode:
        """The same code outside the graph."""
        norm = None if self.norm is None else (self.norm[0].detach(), self.norm[1].detach())
        return SparseCode(self.values.detach(), self.indices, self.offsets, self.d_sae, norm, self.shape)

    def row_of_entry(self) -> Tensor:
        """`[nnz]`, or `[rows * k]` of fixed-k rows: the token of each value."""
        rows = torch.arange(self.n_rows, device=self.indices.device)
        if self.offsets is None:
            return rows.repeat_interleave(self.indices.shape[-1])
        return rows.repeat_interleave(self.offsets.diff())


def _flatten(code: SparseCode) -> tuple[list[Any], Any]:
    return [code.values, code.indices, code.offsets, code.norm], (code.d_sae, code.shape)


def _unflatten(children: Any, context: Any) -> SparseCode:
    values, indices, offsets, norm = children
    return SparseCode(values, indices, offsets, context[0], norm, context[1])


register_pytree_node(SparseCode, _flatten, _unflatten, serialized_type_name="hf_sae.SparseCode")
