"""Rows that are read together: with a cache that rows join and leave at any time, or without one.

All rows end in the same column, and shorter ones are padded on the left. A row that joins is read by itself first; then the two
caches are laid side by side. When the longest row leaves, the columns that only it had are cut off.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .forward import HostForward, Output
from .rows import Row


class Batch(ABC):
    """Some rows, all of whose tokens but the last have been read.

    Args:
        forward ([`HostForward`]): reads tokens.
        rows (`list` of [`Row`]): the texts.
    """

    def __init__(self, forward: HostForward, rows: Sequence[Row] = ()) -> None:
        self.forward, self.rows = forward, list(rows)

    @classmethod
    @abstractmethod
    def begin(cls, forward: HostForward, rows: Sequence[Row]) -> tuple[Self, Output]:
        """A batch of new rows, and what the host says after their prompts."""

    @abstractmethod
    def step(self) -> Output:
        """Reads the last token of every row. After an exception the batch is as it was before."""

    @abstractmethod
    def part(self, places: Sequence[int]) -> Self:
        """A batch of some of the rows; this one is not usable any more once either is stepped."""

    @abstractmethod
    def absorb(self, other: Self) -> None:
        """Takes the rows of another batch, after its own."""


class PlainBatch(Batch):
    """Reads every row by itself from its start, at every step: slower, and right for any host."""

    @classmethod
    def begin(cls, forward: HostForward, rows: Sequence[Row]) -> tuple[Self, Output]:
        """A batch of new rows, and what the host says after their prompts."""
        batch = cls(forward, rows)
        return batch, batch.step()

    def step(self) -> Output:
        """Reads every row."""
        return Output.joined([self.forward([row], len(row)) for row in self.rows])

    def part(self, places: Sequence[int]) -> Self:
        """A batch of some of the rows."""
        return type(self)(self.forward, [self.rows[place] for place in places])

    def absorb(self, other: Self) -> None:
        """Takes the rows of another batch, after its own."""
        self.rows += other.rows


class CachedBatch(Batch):
    """Reads only new tokens, of all rows in one call.

    Keys and values are kept for all tokens also where the host looks at a window of them: its masks see to that.
    """

    def __init__(self, forward: HostForward, rows: Sequence[Row] = (), cache: Any = None) -> None:
        super().__init__(forward, rows)
        self.cache = cache

    @classmethod
    def begin(cls, forward: HostForward, rows: Sequence[Row]) -> tuple[Self, Output]:
        """A batch of new rows; equal prompts under equal plans are read once."""
        from transformers import DynamicCache

        keys = [
            (row.prompt.ids, row.prompt.assistant if row.plan else None, id(row.plan) if row.plan else None, row.trace)
            for row in rows
        ]
        unique = list(dict.fromkeys(keys))
        firsts = [rows[keys.index(key)] for key in unique]
        cache = DynamicCache()
        output = forward(firsts, max(map(len, firsts)), cache)
        places = [unique.index(key) for key in keys]
        _select(cache, places)
        return cls(forward, rows, cache), Output(output.logits[places], [output.traces[place] for place in places])

    def step(self) -> Output:
        """Reads the last token of every row."""
        before = _columns(self.cache)
        try:
            return self.forward(self.rows, 1, self.cache, before)
        except BaseException:
            # some layers may have taken the token already
            for layer in _layers(self.cache):
                layer.keys, layer.values = layer.keys[..., :before, :], layer.values[..., :before, :]
            raise

    def part(self, places: Sequence[int]) -> Self:
        """A batch of some of the rows, without the columns that only others needed."""
        from transformers import DynamicCache

        rows = [self.rows[place] for place in places]
        unread = _columns(self.cache) - max((len(row) - 1 for row in rows), default=0)
        index, cache = torch.tensor(places, dtype=torch.long), DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            if rows and layer.is_initialized:
                at = index.to(layer.keys.device)
                cache.update(layer.keys[at][..., unread:, :], layer.values[at][..., unread:, :], number)
        return type(self)(self.forward, rows, cache)

    def absorb(self, other: Self) -> None:
        """Takes the rows of another batch, after its own."""
        if not self.rows or not other.rows:
            self.rows, self.cache = (other.rows, other.cache) if other.rows else (self.rows, self.cache)
            return
        wide = max(_columns(self.cache), _columns(other.cache))
        for mine, theirs in zip(_layers(self.cache), _layers(other.cache), strict=True):
            mine.keys = torch.cat([_widened(mine.keys, wide), _widened(theirs.keys, wide)])
            mine.values = torch.cat([_widened(mine.values, wide), _widened(theirs.values, wide)])
        self.rows += other.rows


def _layers(cache: Any) -> list[Any]:
    # layers that share the keys of others stay empty
    return [layer for layer in cache.layers if layer.is_initialized]


def _columns(cache: Any) -> int:
    return max((layer.keys.shape[-2] for layer in _layers(cache)), default=0)


def _select(cache: Any, places: Sequence[int]) -> None:
    index = torch.tensor(places)
    for layer in _layers(cache):
        at = index.to(layer.keys.device)
        layer.keys, layer.values = layer.keys[at], layer.values[at]


def _widened(x: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, columns - x.shape[-2], 0))
