"""Which latents fire on the same tokens: counts of pairs in bounded memory.

* Up to `LARGEST_TABLE` bytes every pair has a counter (`4 * d_sae**2` bytes), and counts are exact.
* A wider autoencoder keeps the most frequent partners of each latent and forgets the rest whenever they get too many. A
  pair that was forgotten begins again at zero: its count is then a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .contexts import rank_in


LARGEST_TABLE = 1 << 30  # bytes
PARTNERS = 128  # kept of each latent at least, where not every pair has a counter
_PAIRS_AT_ONCE = 1 << 22


def pair_counter(d_sae: int) -> PairTable | FrequentPairs:
    """The exact counter where it fits into `LARGEST_TABLE` bytes, else the one that forgets."""
    return PairTable(d_sae) if 4 * d_sae**2 <= LARGEST_TABLE else FrequentPairs(d_sae)


def pair_bytes(d_sae: int) -> int:
    """What [`pair_counter`] keeps at most between two batches."""
    table = 4 * d_sae**2
    return table if table <= LARGEST_TABLE else 16 * 2 * PARTNERS * d_sae


class PairTable:
    """A counter for every pair of latents.

    Args:
        d_sae (`int`): how many latents there are.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae, self.exact = d_sae, True
        self.counts = torch.zeros(d_sae * d_sae, dtype=torch.int32)  # of (i, j) with i < j

    def add(self, tokens: Tensor, latents: Tensor) -> None:
        """Counts the pairs of one batch.

        Args:
            tokens (`Tensor`): `[nnz]`, token of each non-zero latent, ascending.
            latents (`Tensor`): `[nnz]`, which latent.
        """
        for first, second in _pairs(tokens, latents):
            keys = torch.minimum(first, second) * self.d_sae + torch.maximum(first, second)
            self.counts.scatter_add_(0, keys, torch.ones_like(keys, dtype=torch.int32))

    def merge(self, other: PairTable) -> None:
        """Adds the counts of other text."""
        self.counts += other.counts

    def partners(self, latents: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The `n` latents that fire most often together with each of `latents` `[m]`, and on how many tokens.

        Returns:
            `(indices, counts)`, each `[m, n]`; of equals the first; a count of 0 is no partner.
        """
        table = self.counts.view(self.d_sae, self.d_sae)
        return _most(table[latents] + table[:, latents].T, n)


class FrequentPairs:
    """Counters for the most frequent partners of each latent.

    Args:
        d_sae (`int`): how many latents there are.
        partners (`int`): kept of each latent when there are more than twice as many in all.
    """

    def __init__(self, d_sae: int, partners: int = PARTNERS) -> None:
        self.d_sae, self.kept, self.exact = d_sae, partners, True
        self.keys = torch.empty(0, dtype=torch.long)  # i * d_sae + j, ascending, both ways round
        self.counts = torch.empty(0, dtype=torch.long)

    def add(self, tokens: Tensor, latents: Tensor) -> None:
        """As in [`PairTable.add`]."""
        for first, second in _pairs(tokens, latents):
            fresh = torch.cat([first * self.d_sae + second, second * self.d_sae + first])
            self._add(*fresh.unique(return_counts=True))

    def merge(self, other: FrequentPairs) -> None:
        """Adds the counts of other text: exact as long as neither has forgotten a pair."""
        self.exact = self.exact and other.exact
        self._add(other.keys, other.counts)

    def partners(self, latents: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """As in [`PairTable.partners`]."""
        table = torch.zeros(len(latents), self.d_sae, dtype=torch.long)
        bounds = torch.searchsorted(self.keys, torch.stack([latents, latents + 1]) * self.d_sae)
        for row, (start, end) in enumerate(bounds.T.tolist()):
            table[row, self.keys[start:end] % self.d_sae] = self.counts[start:end]
        return _most(table, n)

    def _add(self, keys: Tensor, counts: Tensor) -> None:
        keys, place = torch.cat([self.keys, keys]).unique(return_inverse=True)
        self.counts = torch.zeros_like(keys).scatter_add_(0, place, torch.cat([self.counts, counts]))
        self.keys = keys
        if len(keys) > 2 * self.kept * self.d_sae:
            self._forget()

    def _forget(self) -> None:
        order = self.counts.sort(descending=True, stable=True).indices
        order = order[(self.keys[order] // self.d_sae).sort(stable=True).indices]
        chosen = order[rank_in(self.keys[order] // self.d_sae) < self.kept].sort().values
        self.exact = self.exact and len(chosen) == len(self.keys)
        self.keys, self.counts = self.keys[chosen], self.counts[chosen]


def _pairs(tokens: Tensor, latents: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every pair of latents of one token once, in bounded parts; tokens ascend."""
    if not len(tokens):
        return
    _, place, counts = tokens.unique_consecutive(return_inverse=True, return_counts=True)
    own = torch.arange(len(tokens))
    later = counts.cumsum(0)[place] - own - 1  # latents of the same token that follow
    part = later.cumsum(0) // _PAIRS_AT_ONCE
    for at in own.split(part.unique_consecutive(return_counts=True)[1].tolist()):
        first = at.repeat_interleave(later[at])
        starts = later[at].cumsum(0) - later[at]
        step = torch.arange(len(first)) - starts.repeat_interleave(later[at])
        yield latents[first], latents[first + 1 + step]


def _most(table: Tensor, n: int) -> tuple[Tensor, Tensor]:
    d_sae = table.shape[1]
    # a key says the count and, of equals, which comes first
    keys = table.long() * d_sae + torch.arange(d_sae - 1, -1, -1)
    best = keys.topk(min(n, d_sae), dim=1).values
    return d_sae - 1 - best % d_sae, best // d_sae
