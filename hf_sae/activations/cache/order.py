"""The order of a cache as one number: which row of which shard comes at each position, epoch after epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class GlobalOrder:
    """Position → epoch, shard and place in it.

    The first epoch is as it was written, shuffled already. Each later one has an order of shards and, within each, of rows that
    is drawn from the seed.

    Args:
        rows (`Sequence[int]`): tokens of each shard.
        seed (`int`): of the later epochs.
    """

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self.rows, self.seed, self.total = list(rows), seed, sum(rows)
        self._epoch, self._shards, self._ends = -1, [], []

    def shards(self, epoch: int) -> list[int]:
        """The shards in the order of an epoch."""
        self._turn_to(epoch)
        return self._shards

    def at(self, position: int) -> tuple[int, int, int]:
        """`(epoch, shard, row)` of a position; the row is counted in the epoch's own order of the shard."""
        epoch, offset = divmod(position, self.total)
        self._turn_to(epoch)
        place = int(torch.searchsorted(torch.tensor(self._ends), offset, right=True))
        return epoch, self._shards[place], offset - (self._ends[place - 1] if place else 0)

    def permutation(self, epoch: int, shard: int) -> Tensor | None:
        """Which row of a shard comes where, `[rows]`; `None` where they come as they lie."""
        if epoch == 0:
            return None
        return torch.randperm(self.rows[shard], generator=self._generator(epoch, shard + 1))

    def _turn_to(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        count = len(self.rows)
        shards = torch.randperm(count, generator=self._generator(epoch, 0)).tolist() if epoch else [*range(count)]
        self._epoch, self._shards = epoch, shards
        self._ends = list(accumulate(self.rows[shard] for shard in shards))

    def _generator(self, epoch: int, part: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 1_000_003 + part) % 2**63)
