"""The strongest contexts of many latents, or a random sample of them, merged batch by batch in bounded memory.

* What is kept does not grow with the number of tokens read: per latent some windows and a count.
* Equal windows count once: the header of a licence that stands in a thousand files is one example.
* Of a latent that fires with both signs, either keeps half of the places at least: the weaker end is seen too.
* What is kept depends neither on the order of the text nor on how it was split: of contexts with equal priority the one
  of the earlier record comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from ..data import TokenBatch


ABSENT = -1
_COLUMNS_AT_ONCE = 1024
_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, so that its powers are distinct modulo 2**64


class ContextStore:
    """The strongest windows of some latents, of both signs where a latent has two, merged batch by batch.

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
        self.priorities = torch.zeros(n, n_examples, dtype=torch.float64)  # sorted; 0 is an empty place
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
        priorities = self._priorities(batch, tokens[peaks], columns[peaks], values[peaks])
        better = self._may_enter(columns[peaks], priorities, values[peaks])
        peaks, priorities = peaks[better], priorities[better]
        where = windows_around(batch, tokens[peaks], self.window)
        # one sorted key per non-zero latent finds the activations of a latent along its window
        size = batch.input_ids.numel()
        keys, order = (columns * size + tokens).sort()
        wanted_keys = columns[peaks, None] * size + where
        found = torch.searchsorted(keys, wanted_keys).clamp(max=len(keys) - 1)
        hit = (keys[found] == wanted_keys) & (where != ABSENT)
        activations = torch.where(hit, values[order[found]], 0.0)
        documents = batch.documents.flatten()[tokens[peaks]]
        self._merge(columns[peaks], priorities, values[peaks], documents, ids_at(batch, where), activations)

    def merge(self, other: ContextStore) -> None:
        """Takes in what another store of the same latents and sizes kept of other text."""
        self.tokens += other.tokens
        self.fired += other.fired
        for part in torch.arange(len(self.latents)).split(_COLUMNS_AT_ONCE):
            there = (other.priorities[part] > 0).nonzero()
            columns, ranks = part[there[:, 0]], there[:, 1]
            kept = (other.priorities, other.values, other.documents, other.windows, other.activations)
            if len(columns):
                self._merge(columns, *(tensor[columns, ranks] for tensor in kept))

    def without_silent(self) -> ContextStore:
        """The store itself, after forgetting the latents that never fired."""
        fired = self.fired > 0
        for name in ("latents", "fired", "priorities", "values", "documents", "windows", "activations"):
            setattr(self, name, getattr(self, name)[fired])
        self.column.fill_(-1)
        self.column[self.latents] = torch.arange(len(self.latents))
        return self

    def _priorities(self, batch: TokenBatch, peaks: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """`[peaks]`, float64 above 0: which contexts are kept, those with the highest; here the strength of the peak."""
        return values.abs().double()

    def _may_enter(self, columns: Tensor, priorities: Tensor, values: Tensor) -> Tensor:
        """`[peaks]`: which contexts have a chance; most come after what is kept already, and have none."""
        # of equals, the earlier record may be the new one
        same = (self.values[columns].sign() == values.sign()[:, None]).sum(1)
        return (priorities >= self.priorities[columns, -1]) | (same < self.n_examples // 2)

    def _kept(self, group: Tensor, values: Tensor) -> Tensor:
        """Which of some contexts are kept, `[n]`, given their latents (in order) and peaks (strongest first)."""
        allowed, signs = torch.ones_like(group, dtype=torch.bool), (values > 0, values < 0)
        for mine, other in (signs, signs[::-1]):
            taken = torch.bincount(group[other], minlength=len(self.latents)).clamp(max=self.n_examples // 2)
            allowed[mine] = rank_in(group[mine]) < self.n_examples - taken[group[mine]]
        kept = allowed.nonzero().squeeze(1)
        return kept[rank_in(group[kept]) < self.n_examples]

    def _merge(
        self,
        columns: Tensor,
        priorities: Tensor,
        values: Tensor,
        documents: Tensor,
        ids: Tensor,
        activations: Tensor,
    ) -> None:
        """Keeps the first `n_examples` different windows, by priority, of what is kept and what is new."""
        touched, group = columns.unique(return_inverse=True)
        kept_group = torch.arange(len(touched)).repeat_interleave(self.n_examples)
        group = torch.cat([kept_group, group])
        priorities = torch.cat([self.priorities[touched].flatten(), priorities])
        values = torch.cat([self.values[touched].flatten(), values])
        documents = torch.cat([self.documents[touched].flatten(), documents])
        ids = torch.cat([self.windows[touched].flatten(0, 1), ids])
        activations = torch.cat([self.activations[touched].flatten(0, 1), activations])
        # stable sorts, least important key first: by group, highest first, earlier records first, and last by content
        salt = torch.zeros(len(ids), dtype=torch.long)
        order = window_hashes(torch.cat([activations, values[:, None]], dim=1).view(torch.int32), salt).sort().indices
        order = order[window_hashes(ids, salt)[order].sort(stable=True).indices]
        order = order[documents[order].sort(stable=True).indices]
        order = order[priorities[order].sort(descending=True, stable=True).indices]
        order = order[group[order].sort(stable=True).indices]
        order = order[_first_of_each(group[order], ids[order])]
        order = order[self._kept(group[order], values[order])]
        rank = rank_in(group[order])
        row = touched[group[order]]
        for kept, fresh, empty in (
            (self.priorities, priorities, 0),
            (self.values, values, 0),
            (self.documents, documents, ABSENT),
            (self.windows, ids, ABSENT),
            (self.activations, activations, 0),
        ):
            kept[touched] = empty
            kept[row, rank] = fresh[order]


def windows_around(batch: TokenBatch, peaks: Tensor, window: int) -> Tensor:
    """`[peaks, 2 * window + 1]`: flat positions around each peak, `ABSENT` outside its row, its document and the text.

    Args:
        batch ([`TokenBatch`]): on the CPU.
        peaks (`Tensor`): `[peaks]`, positions in the flattened batch.
        window (`int`): tokens on each side.
    """
    length = batch.input_ids.shape[1]
    where = peaks[:, None] + torch.arange(-window, window + 1)
    inside = (where >= 0) & (where < batch.input_ids.numel()) & (where // length == peaks[:, None] // length)
    safe = where.clamp(0, batch.input_ids.numel() - 1)
    documents, real = batch.documents.flatten(), batch.attention_mask.flatten() != 0
    inside &= (documents[safe] == documents[peaks, None]) & real[safe]
    return torch.where(inside, where, ABSENT)


def ids_at(batch: TokenBatch, where: Tensor) -> Tensor:
    """Token ids at flat positions, as `int32` of the same shape; `ABSENT` where there is no token."""
    return torch.where(where == ABSENT, ABSENT, batch.input_ids.flatten()[where.clamp(min=0)]).int()


def window_hashes(ids: Tensor, salt: Tensor) -> Tensor:
    """`[n]`: a 64-bit number for each window of token ids `[n, width]`, another one for each `salt` `[n]`."""
    powers = torch.full((ids.shape[1] + 1,), _MULTIPLIER).cumprod(0)
    return (ids.long() * powers[1:]).sum(1) + (salt + 1) * powers[0]


def _contexts(batch: TokenBatch) -> Tensor:
    """`[B * T]`: a number for each stretch of one document in one row."""
    changes = torch.ones_like(batch.documents, dtype=torch.bool)
    changes[:, 1:] = batch.documents[:, 1:] != batch.documents[:, :-1]
    return changes.flatten().cumsum(0) - 1


def _peaks(contexts: Tensor, tokens: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Which entries are the strongest of their latent and sign in their context, the first of equals."""
    keys = (columns * (int(contexts[-1]) + 1) + contexts[tokens]) * 2 + (values < 0)
    order = values.abs().sort(descending=True, stable=True).indices
    order = order[keys[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    return order[first]


def _first_of_each(group: Tensor, ids: Tensor) -> Tensor:
    """Mask of the first occurrence of each window in its group (by a 64-bit hash)."""
    _, inverse = window_hashes(ids, group).unique(return_inverse=True)
    places = torch.arange(len(inverse))
    first = torch.full((len(inverse),), len(inverse)).scatter_reduce(0, inverse, places, "amin")
    return first[inverse] == places


def rank_in(group: Tensor) -> Tensor:
    """Position of each entry in its group, for sorted groups."""
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(group)) - starts[group]
