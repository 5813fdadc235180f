"""Uniform random samples of contexts in one pass: those where a latent fires, and those where it does not.

* What is kept are the windows with the highest of some pseudo-random numbers, which a hash makes of the window's token ids,
  the latent and a seed. So the sample is uniform over the *different* windows, and depends neither on the order of the
  text nor on how it was split into batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .contexts import ABSENT, ContextStore, ids_at, rank_in, window_hashes, windows_around
from .histograms import GrowingHistograms


if TYPE_CHECKING:
    from ..data import TokenBatch


_LAST = 2**63 - 1
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # of the finaliser of SplitMix64


def uniform_of(hashes: Tensor, seed: int) -> Tensor:
    """A pseudo-random float64 in (0, 1] for each 64-bit number, the same for equal numbers and seeds.

    The finaliser of SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195).
    """
    x = hashes + _signed(seed * 0x9E3779B97F4A7C15)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        x = (x ^ _logical_shift(x, shift)) * factor
    x = x ^ _logical_shift(x, 31)
    return (_logical_shift(x, 11) + 1).double() / 2**53


def _logical_shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & (2 ** (64 - by) - 1)


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


class RandomContexts(ContextStore):
    """A uniform sample of the different windows around the peaks of the contexts where a latent fires.

    Args:
        latents (`Tensor`), d_sae (`int`), n_examples (`int`), window (`int`): as in [`ContextStore`].
        seed (`int`): of the sample.

    Attributes:
        strengths ([`GrowingHistograms`]): how many contexts have a peak of which activation, repeated windows included.
    """

    def __init__(self, latents: Tensor, d_sae: int, n_examples: int, window: int, seed: int) -> None:
        super().__init__(latents, d_sae, n_examples, window)
        self.seed, self.strengths = seed, GrowingHistograms(len(latents))

    def _priorities(self, batch: TokenBatch, peaks: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        self.strengths.add(columns, values)
        ids = ids_at(batch, windows_around(batch, peaks, self.window))
        return uniform_of(window_hashes(ids, self.latents[columns]), self.seed)

    def _may_enter(self, columns: Tensor, priorities: Tensor, values: Tensor) -> Tensor:
        return priorities >= self.priorities[columns, -1]

    def _kept(self, group: Tensor, values: Tensor) -> Tensor:
        return (rank_in(group) < self.n_examples).nonzero().squeeze(1)  # a sample has signs as they come

    def merge(self, other: ContextStore) -> None:
        """As in [`ContextStore`]; `other` is a [`RandomContexts`] of the same seed."""
        super().merge(other)
        if isinstance(other, RandomContexts):
            self.strengths.merge(other.strengths)


class ContextPool:
    """A uniform sample of the different windows of the text, and which latents fire in each, wherever it stands.

    Args:
        d_sae (`int`): how many latents there are.
        size (`int`): windows that are kept.
        window (`int`): tokens on each side of the middle.
        seed (`int`): of the sample.
    """

    def __init__(self, d_sae: int, size: int, window: int, seed: int) -> None:
        self.d_sae, self.size, self.window, self.seed = d_sae, size, window, seed
        self.priorities = torch.empty(0, dtype=torch.float64)
        self.documents = torch.empty(0, dtype=torch.long)
        self.windows = torch.empty(0, 2 * window + 1, dtype=torch.int32)
        self.fires = torch.empty(0, d_sae, dtype=torch.bool)

    def add(self, batch: TokenBatch, tokens: Tensor, latents: Tensor) -> None:
        """Takes in one batch; arguments as in [`ContextStore.add`]."""
        middles = batch.keep.flatten().nonzero().squeeze(1)
        where = windows_around(batch, middles, self.window)
        ids = ids_at(batch, where)
        # equal windows have equal numbers
        priorities = uniform_of(window_hashes(ids, torch.full((len(ids),), ABSENT)), self.seed)
        slots = self._slots(priorities)
        chosen = slots >= 0
        if not chosen.any():
            return
        where, ids, slots = where[chosen], ids[chosen], slots[chosen]
        self._record(slots, ids, batch.documents.flatten()[middles[chosen]])
        self._mark(slots, where, batch.input_ids.numel(), tokens, latents)

    def merge(self, other: ContextPool) -> None:
        """Takes in the pool of other text."""
        slots = self._slots(other.priorities)
        chosen = slots >= 0
        slots = slots[chosen]
        self._record(slots, other.windows[chosen], other.documents[chosen])
        self.fires[slots] |= other.fires[chosen]

    def _slots(self, priorities: Tensor) -> Tensor:
        """Makes room for the windows with these numbers; the place of each in the pool, -1 where it is not in it."""
        least = self.priorities[0] if len(self.priorities) == self.size else -1.0
        best = (
            torch.cat([self.priorities, priorities[priorities >= least]]).unique()[-self.size :].clone()
        )  # ascending
        if len(best) != len(self.priorities) or not torch.equal(best, self.priorities):
            place = torch.searchsorted(best, self.priorities)
            stays = best[place] == self.priorities
            for name, empty in (("documents", _LAST), ("windows", ABSENT), ("fires", False)):
                before = getattr(self, name)
                after = torch.full((len(best), *before.shape[1:]), empty, dtype=before.dtype)
                after[place[stays]] = before[stays]
                setattr(self, name, after)
            self.priorities = best
        place = torch.searchsorted(best, priorities).clamp(max=len(best) - 1)
        return torch.where(best[place] == priorities, place, -1)

    def _record(self, slots: Tensor, ids: Tensor, documents: Tensor) -> None:
        """Of equal windows, the first record that has one is named."""
        self.windows[slots] = ids
        self.documents.scatter_reduce_(0, slots, documents, "amin")

    def without(self, latent: int, n: int) -> list[int]:
        """Numbers of `n` windows of the pool in which a latent does not fire, at random; fewer where there are fewer."""
        quiet = (~self.fires[:, latent]).nonzero().squeeze(1)
        order = uniform_of(quiet * self.d_sae + latent, self.seed).sort(descending=True, stable=True).indices
        return quiet[order[:n]].tolist()

    def _mark(self, slots: Tensor, where: Tensor, size: int, tokens: Tensor, latents: Tensor) -> None:
        """Notes which latents fire anywhere in windows, whose positions are `where` `[n, width]`."""
        for column in where.unbind(1):  # no token stands at the same offset of two windows
            slot_of = torch.full((size,), ABSENT)
            inside = column != ABSENT
            slot_of[column[inside]] = slots[inside]
            found = slot_of[tokens]
            hit = found != ABSENT
            self.fires[found[hit], latents[hit]] = True
