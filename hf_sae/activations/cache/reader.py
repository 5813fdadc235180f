"""`CachedStream`: a cache as a stream of activations that any number of runs and processes can read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError, HookPointError
from ...hosts.hook_points import HookPoint
from ..interface import BatchStream, Rows
from .checking import damaged, read_tensors, whole_path
from .order import GlobalOrder
from .sources import open_shards


logger = logging.getLogger(__name__)
Span = tuple[int, int, int, int]  # epoch, shard, first row in that epoch's order, rows


class CachedStream(BatchStream):
    """The activations of a cache in a fixed order, the first time as they were written.

    Every process reads its slice of each global batch, so the position is one number for all of them, and a state goes on with
    any number of processes. Later epochs have new orders of shards and of rows in a shard. One shard is mapped into memory at
    a time.

    Args:
        source (`str` or `Path`): a folder that [`write_cache`] wrote, or a dataset repo on the Hub.
        hook_points (`str`, [`HookPoint`] or several, *optional*): places to read; otherwise all.
        repeat (`bool`, *optional*, defaults to `False`): start the next epoch for ever instead of ending.
        seed (`int`, *optional*, defaults to 0): of the order of later epochs.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1): of this process.
        verify (`bool`, *optional*, defaults to `True`): compare a shard's SHA-256 before its first use.
        skip_corrupt (`bool`, *optional*, defaults to `False`): pass over damaged shards and count them.
        dtype (`torch.dtype`, *optional*): of what is served; otherwise the cache's.
        revision (`str`, *optional*): of a repo: branch, tag or commit, resolved once.
        keep (`bool`, *optional*, defaults to `True`): keep what is downloaded; otherwise one or two shards are on disk at a time.
        token (`str`, *optional*): instead of the one that `hf auth login` stored.

    Raises:
        DataError: if there is no finished cache.
        HookPointError: if it does not hold a place.
        OSError: if the repo does not exist, is gated, or cannot be reached.

    Example:
        ```python
        stream = CachedStream("user/gpt2-layer-8-activations", repeat=True)
        SAETrainer(sae, args, stream).train()
        ```
    """

    state_is_small = True

    def __init__(
        self,
        source: str | Path,
        hook_points: str | HookPoint | Sequence[str | HookPoint] | None = None,
        *,
        repeat: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        verify: bool = True,
        skip_corrupt: bool = False,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        keep: bool = True,
        token: str | bool | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise DataError(f"rank={rank}, world_size={world_size}: a rank is at least 0 and less than world_size.")
        self.shards = open_shards(source, revision, keep, token)
        self.manifest = self.shards.manifest
        self.points = self._chosen(hook_points)
        self.repeat, self.seed, self.rank, self.world_size = repeat, seed, rank, world_size
        self.verify, self.skip_corrupt, self._dtype = verify, skip_corrupt, dtype or self.manifest.storage.dtype
        self.order = GlobalOrder([shard.rows for shard in self.manifest.shards], seed)
        self.position = 0  # in rows of the global order, damaged shards included
        self._counts = dict.fromkeys(("served", "skipped_shards", "skipped_tokens"), 0)
        self._verdicts: dict[int, str | None] = {}
        self._open: tuple[int, dict[str, Tensor]] | None = None
        self._permutation: tuple[tuple[int, int], Tensor | None] | None = None

    def _chosen(self, hook_points: str | HookPoint | Sequence[str | HookPoint] | None) -> list[str]:
        have = list(self.manifest.points)
        if hook_points is None:
            return have
        several = [hook_points] if isinstance(hook_points, (str, HookPoint)) else hook_points
        points = list(dict.fromkeys(map(str, several)))
        missing = [point for point in points if point not in have]
        if missing or not points:
            raise HookPointError(
                f"the cache {self.shards.name!r} does not hold {', '.join(map(repr, missing)) or 'no place'}. It holds "
                f"{', '.join(map(repr, have))}."
            )
        return points

    @property
    def widths(self) -> dict[str, int]:
        """Size of the activations at each place, keyed by the place as written."""
        return {point: self.manifest.points[point].width for point in self.points}

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self._dtype

    @property
    def epoch(self) -> int:
        """Number of passes over the cache that are complete."""
        return self.position // self.order.total

    @property
    def counts(self) -> dict[str, int]:
        """Tokens `served` by this process, and damaged shards that were passed over, with their tokens."""
        return dict(self._counts)

    def batches(self, tokens_per_batch: int, total: int | None = None) -> Iterator[Rows]:
        """The next batches of this process, `{hook point: [tokens, width]}`, of `total` tokens where that is given; goes on where
        the previous call stopped.

        A global batch is `world_size` of them. The last one of a cache that is not repeated may be smaller, and is shared
        equally: up to `world_size − 1` tokens are left over.

        Raises:
            DataError: if the cache is at its end, or a shard is damaged and `skip_corrupt` is not set.
        """
        if tokens_per_batch < 1:
            raise DataError(f"tokens_per_batch={tokens_per_batch}: give at least 1.")
        if self._ended:
            raise DataError(
                f"the cache {self.shards.name!r} is at its end: all {self.order.total:,} tokens have been served. Pass repeat=True "
                "to go on with the next epoch, or make a new stream."
            )
        return self._batches(tokens_per_batch, total)

    def _batches(self, tokens_per_batch: int, left: int | None) -> Iterator[Rows]:
        while not self._ended and (left is None or left > 0):
            wanted = tokens_per_batch if left is None else min(tokens_per_batch, left)
            spans, position, skipped = self._spans(self.position, wanted * self.world_size)
            share = sum(span[3] for span in spans) // self.world_size
            rows = self._read(_cut(spans, self.rank * share, share))
            self.position = position
            for shard in skipped:
                self._counts["skipped_shards"] += 1
                self._counts["skipped_tokens"] += self.order.rows[shard]
            if rows.count:
                self._counts["served"] += rows.count
                left = None if left is None else left - rows.count
                yield rows

    @property
    def _ended(self) -> bool:
        return not self.repeat and self.position >= self.order.total

    def sample(self, n_tokens: int) -> Rows:
        """The next tokens of the global order, `{hook point: [n, width]}`, without serving them: the same on every process."""
        return self._read(self._spans(self.position, n_tokens)[0])

    def _spans(self, position: int, wanted: int) -> tuple[list[Span], int, list[int]]:
        """Where the next `wanted` rows lie, the position behind them, and the damaged shards in between."""
        spans: list[Span] = []
        skipped: list[int] = []
        while wanted and (self.repeat or position < self.order.total):
            epoch, shard, start = self.order.at(position)
            count = self.order.rows[shard] - start
            if self.skip_corrupt and self._verdict(shard) is not None:
                self._refuse_if_nothing_is_left()
                skipped.append(shard)
            else:
                count = min(count, wanted)
                spans.append((epoch, shard, start, count))
                wanted -= count
            position += count
        return spans, position, skipped

    def _refuse_if_nothing_is_left(self) -> None:
        known = [self._verdicts.get(number) for number in range(len(self.order.rows))]
        if all(why is not None for why in known):
            raise DataError(f"every shard is damaged, such as: {damaged(self.manifest.shards[0], str(known[0]))}")

    def _verdict(self, shard: int) -> str | None:
        """What is wrong with a shard, looked at once; `None` where it is whole."""
        if shard not in self._verdicts:
            facts = self.manifest.shards[shard]
            wrong = whole_path(self.shards, facts, self.verify)[1]
            if wrong is not None and self.skip_corrupt:
                logger.warning("passing over %s: %s", facts.file, wrong)
            self._verdicts[shard] = wrong
        return self._verdicts[shard]

    def _read(self, spans: list[Span]) -> Rows:
        parts = [self._part(*span) for span in spans]
        if parts:
            return Rows.join(parts)
        empty = {point: torch.empty(0, width, dtype=self.dtype) for point, width in self.widths.items()}
        return Rows(empty, torch.empty(0, 2, dtype=torch.int32))

    def _part(self, epoch: int, shard: int, start: int, count: int) -> Rows:
        tensors = self._tensors(epoch, shard)
        if self._permutation is None or self._permutation[0] != (epoch, shard):
            self._permutation = (epoch, shard), self.order.permutation(epoch, shard)
        order = self._permutation[1]
        chosen = torch.arange(start, start + count) if order is None else order[start : start + count]
        # copies, so that no batch keeps a file mapped
        rows = {name: tensor.index_select(0, chosen) for name, tensor in tensors.items()}
        ids = torch.stack([rows.pop("token_ids"), rows.pop("document_ids")], dim=1)
        decode = self.manifest.storage.decode
        return Rows({point: decode(point, rows).to(self.dtype) for point in self.points}, ids)

    def _tensors(self, epoch: int, shard: int) -> dict[str, Tensor]:
        """A shard's tensors; the one that was open before is closed, and the next one begins to come."""
        if self._open is not None and self._open[0] == shard:
            return self._open[1]
        facts = self.manifest.shards[shard]
        if self._open is not None:
            before, self._open = self._open[0], None
            self.shards.release(self.manifest.shards[before])
        wrong = self._verdict(shard)
        if wrong is not None:
            raise DataError(damaged(facts, wrong))
        self._open = shard, read_tensors(self.shards.path(facts), facts, self.manifest, self.points)
        following = self.order.shards(epoch)
        place = following.index(shard) + 1
        if place < len(following):
            self.shards.fetch_ahead(self.manifest.shards[following[place]])
        return self._open[1]

    def state_dict(self) -> dict[str, Any]:
        """The position in the global order, as JSON values."""
        return {
            "cache": self.manifest.identity,
            "seed": self.seed,
            "position": self.position,
            "counts": self.counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit, with this or any other number of processes.

        Raises:
            DataError: if it was taken from another cache or with another seed.
        """
        for name, here in (("cache", self.manifest.identity), ("seed", self.seed)):
            if state.get(name) != here:
                raise DataError(
                    f"the state was saved with {name}={state.get(name)!r}, and this stream has {here!r}. Resume with the cache and "
                    "the seed of the first run, or start afresh."
                )
        self.position, self._counts = int(state["position"]), dict(state["counts"])

    def info(self) -> dict[str, Any]:
        """Where the activations come from, as JSON values: what the stream said that was written, and the cache."""
        cache = {
            "name": self.shards.name,
            "commit": self.shards.commit,
            "identity": self.manifest.identity,
            "n_tokens": self.order.total,
            "storage": self.manifest.storage.name,
            "fvu_floor": {point: self.manifest.points[point].fvu_floor for point in self.points},
            "seed": self.seed,
            "epoch": self.epoch,
        }
        places = self.manifest.source.get("hook_points", {})
        own = {"widths": self.widths, "hook_points": {p: places[p] for p in self.points if p in places}}
        return {**self.manifest.source, **own, "cache": cache, "counts": self.counts}


def _cut(spans: list[Span], start: int, count: int) -> list[Span]:
    """The part of spans from row `start` on, `count` rows."""
    out: list[Span] = []
    for epoch, shard, first, rows in spans:
        low, high = max(start, 0), min(start + count, rows)
        if low < high:
            out.append((epoch, shard, first + low, high - low))
        start -= rows
    return out
