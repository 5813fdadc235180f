"""Uniform random samples of contexts in one pass: those where a latent fires, and those where it does not.

* What is kept are the windows with the highest of some pseudo-random numbers, which a hash makes of the window's token ids,
  the latent and a seed. So the sample is uniform over the *different* windows, and depends neither on the order of the
  text nor on how it was split into batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .contexts import ABSENT, ContextStore, ids_at, window_hashes, windows_around
from .histograms import GrowingHistograms


if TYPE_CHECKING:
    from ..data import TokenBatch


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


class ContextPool:
    """A uniform sample of the different windows of the text, and which latents fire in each.

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
        priorities = uniform_of(window_hashes(ids, torch.full((len(ids),), ABSENT)), self.seed)
        least = self.priorities[-1] if len(self.priorities) == self.size else 0.0
        # equal windows have equal numbers: one that is in the pool, or was seen in this batch, is left out
        priorities, order = priorities.sort(descending=True, stable=True)
        fresh = (priorities > least) & ~torch.isin(priorities, self.priorities)
        fresh[1:] &= priorities[1:] != priorities[:-1]
        priorities, order = priorities[fresh][: self.size], order[fresh][: self.size]
        if not len(order):
            return
        fires = self._fires(where[order], batch.input_ids.numel(), tokens, latents)
        documents = batch.documents.flatten()[middles[order]]
        best = torch.cat([self.priorities, priorities]).sort(descending=True, stable=True).indices[: self.size]
        self.priorities = torch.cat([self.priorities, priorities])[best]
        self.documents = torch.cat([self.documents, documents])[best]
        self.windows = torch.cat([self.windows, ids[order]])[best]
        self.fires = torch.cat([self.fires, fires])[best]

    def without(self, latent: int, n: int) -> list[int]:
        """Numbers of `n` windows of the pool in which a latent does not fire, at random; fewer where there are fewer."""
        quiet = (~self.fires[:, latent]).nonzero().squeeze(1)
        order = uniform_of(quiet * self.d_sae + latent, self.seed).sort(descending=True, stable=True).indices
        return quiet[order[:n]].tolist()

    def _fires(self, where: Tensor, size: int, tokens: Tensor, latents: Tensor) -> Tensor:
        """`[windows, d_sae]`: which latents fire anywhere in each window."""
        fires = torch.zeros(len(where), self.d_sae, dtype=torch.bool)
        for column in where.unbind(1):  # no token stands at the same offset of two windows
            window_of = torch.full((size,), ABSENT)
            inside = (column != ABSENT).nonzero().squeeze(1)
            window_of[column[inside]] = inside
            windows = window_of[tokens]
            hit = windows != ABSENT
            fires[windows[hit], latents[hit]] = True
        return fires
