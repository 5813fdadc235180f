"""The strongest contexts of many latents, merged batch by batch in bounded memory.

* What is kept does not grow with the number of tokens read: per latent some windows and a count.
* Equal windows count once: the header of a licence that stands in a thousand files is one example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from ..data import TokenBatch


ABSENT = -1
_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, so that its powers are distinct modulo 2**64


class ContextStore:
    """The strongest windows of some latents, merged batch by batch.

    Args:
        latents (`Tensor`): `[n]`, which latents.
        d_sae (`int`): how many there are.
        n_examples (`int`): windows kept per latent.
        window (`int`): tokens on each side of the peak.

    Raises:
        ValueError: if there is nothing to keep.
    """

    def __init__(self, latents: Tensor, d_sae: int, n_examples: int, window: int) -> None:
        if n_examples < 1 or window < 0:
            raise ValueError(
                f"n_examples={n_examples}, window={window}: give at least 1 example and 0 tokens around it."
            )
        n, width = len(latents), 2 * window + 1
        self.latents, self.n_examples, self.window, self.tokens = latents, n_examples, window, 0
        self.column = torch.full((d_sae,), -1)
        self.column[latents] = torch.arange(n)
        self.fired = torch.zeros(n, dtype=torch.long)
        self.values = torch.zeros(n, n_examples)
        self.documents = torch.full((n, n_examples), ABSENT)
        self.windows = torch.full((n, n_examples, width), ABSENT, dtype=torch.int32)
        self.activations = torch.zeros(n, n_examples, width)

    def add(self, batch: TokenBatch, tokens: Tensor, latents: Tensor, values: Tensor) -> None:
        """Takes in one batch.

        Args:
            batch ([`TokenBatch`]): on the CPU.
            tokens (`Tensor`): `[nnz]`, position in the flattened batch of each non-zero latent, kept tokens only.
            latents (`Tensor`): `[nnz]`, which latent.
            values (`Tensor`): `[nnz]`, its activation.
        """
        self.tokens += int(batch.keep.sum())
        columns = self.column[latents]
        wanted = columns >= 0
        tokens, columns, values = tokens[wanted], columns[wanted], values[wanted].float()
        self.fired += torch.bincount(columns, minlength=len(self.fired))
        if not len(columns):
            return
        peaks = _peaks(_contexts(batch), tokens, columns, values)
        # most contexts are weaker than what is kept already
        peaks = peaks[values[peaks].abs() > self.values[columns[peaks], -1].abs()]
        where = self._windows(batch, tokens[peaks])
        # one sorted key per non-zero latent finds the activations of a latent along its window
        size = batch.input_ids.numel()
        keys, order = (columns * size + tokens).sort()
        wanted_keys = columns[peaks, None] * size + where
        found = torch.searchsorted(keys, wanted_keys).clamp(max=len(keys) - 1)
        hit = (keys[found] == wanted_keys) & (where != ABSENT)
        activations = torch.where(hit, values[order[found]], 0.0)
        ids = torch.where(where == ABSENT, ABSENT, batch.input_ids.flatten()[where.clamp(min=0)]).int()
        documents = batch.documents.flatten()[tokens[peaks]]
        self._merge(columns[peaks], values[peaks], documents, ids, activations)

    def without_silent(self) -> ContextStore:
        """The store itself, after forgetting the latents that never fired."""
        fired = self.fired > 0
        for name in ("latents", "fired", "values", "documents", "windows", "activations"):
            setattr(self, name, getattr(self, name)[fired])
        self.column.fill_(-1)
        self.column[self.latents] = torch.arange(len(self.latents))
        return self

    def _windows(self, batch: TokenBatch, peaks: Tensor) -> Tensor:
        """`[peaks, width]`: flat positions around each peak, `ABSENT` outside its row, its document and the text."""
        length = batch.input_ids.shape[1]
        where = peaks[:, None] + torch.arange(-self.window, self.window + 1)
        inside = (where >= 0) & (where < batch.input_ids.numel()) & (where // length == peaks[:, None] // length)
        safe = where.clamp(0, batch.input_ids.numel() - 1)
        documents, real = batch.documents.flatten(), batch.attention_mask.flatten() != 0
        inside &= (documents[safe] == documents[peaks, None]) & real[safe]
        return torch.where(inside, where, ABSENT)

    def _merge(self, columns: Tensor, values: Tensor, documents: Tensor, ids: Tensor, activations: Tensor) -> None:
        """Keeps the strongest `n_examples` different windows of what is kept and what is new."""
        touched, group = columns.unique(return_inverse=True)
        kept_group = torch.arange(len(touched)).repeat_interleave(self.n_examples)
        group = torch.cat([kept_group, group])
        values = torch.cat([self.values[touched].flatten(), values])
        documents = torch.cat([self.documents[touched].flatten(), documents])
        ids = torch.cat([self.windows[touched].flatten(0, 1), ids])
        activations = torch.cat([self.activations[touched].flatten(0, 1), activations])
        # stable sorts, least important key first: by group, strongest first, and what was there before the new
        order = values.abs().sort(descending=True, stable=True).indices
        order = order[group[order].sort(stable=True).indices]
        order = order[_first_of_each(group[order], ids[order])]
        rank = _rank_in(group[order])
        order, rank = order[rank < self.n_examples], rank[rank < self.n_examples]
        row = touched[group[order]]
        for kept, fresh, empty in (
            (self.values, values, 0),
            (self.documents, documents, ABSENT),
            (self.windows, ids, ABSENT),
            (self.activations, activations, 0),
        ):
            kept[touched] = empty
            kept[row, rank] = fresh[order]


def _contexts(batch: TokenBatch) -> Tensor:
    """`[B * T]`: a number for each stretch of one document in one row."""
    changes = torch.ones_like(batch.documents, dtype=torch.bool)
    changes[:, 1:] = batch.documents[:, 1:] != batch.documents[:, :-1]
    return changes.flatten().cumsum(0) - 1


def _peaks(contexts: Tensor, tokens: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Which entries are the strongest of their latent in their context, the first of equals."""
    keys = columns * (int(contexts[-1]) + 1) + contexts[tokens]
    order = values.abs().sort(descending=True, stable=True).indices
    order = order[keys[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    return order[first]


def _first_of_each(group: Tensor, ids: Tensor) -> Tensor:
    """Mask of the first occurrence of each window in its group (by a 64-bit hash)."""
    powers = torch.full((ids.shape[1] + 1,), _MULTIPLIER).cumprod(0)
    hashes = (ids.long() * powers[1:]).sum(1) + (group + 1) * powers[0]
    _, inverse = hashes.unique(return_inverse=True)
    places = torch.arange(len(inverse))
    first = torch.full((len(inverse),), len(inverse)).scatter_reduce(0, inverse, places, "amin")
    return first[inverse] == places


def _rank_in(group: Tensor) -> Tensor:
    """Position of each entry in its group, for sorted groups."""
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(group)) - starts[group]
