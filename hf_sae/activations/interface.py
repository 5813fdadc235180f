"""What a source of activations is to those that read from it: [`BatchStream`], and [`Rows`], one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Rows(dict[str, Tensor]):
    """Activations of the same tokens at several places, `{hook point: [n, width]}`, and which tokens they are.

    Args:
        tensors (`Mapping[str, Tensor]`): by hook point.
        ids (`Tensor`, *optional*): `[n, 2]` int32, token id and document number of each row.
    """

    def __init__(self, tensors: Mapping[str, Tensor], ids: Tensor | None = None) -> None:
        super().__init__(tensors)
        self.ids = ids

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(next(iter(self.values())))

    @property
    def token_ids(self) -> Tensor | None:
        """`[n]` int32: the host's input at each row."""
        return None if self.ids is None else self.ids[:, 0]

    @property
    def document_ids(self) -> Tensor | None:
        """`[n]` int32: number of the record that each row comes from, as in [`hf_sae.data.TokenBatch`]."""
        return None if self.ids is None else self.ids[:, 1]

    def part(self, start: int, stop: int) -> Rows:
        """Rows from `start` to before `stop`, as views."""
        ids = None if self.ids is None else self.ids[start:stop]
        return Rows({point: x[start:stop] for point, x in self.items()}, ids)

    @staticmethod
    def join(parts: list[Rows]) -> Rows:
        """All rows of several batches, in order."""
        if len(parts) == 1:
            return parts[0]
        ids = [part.ids for part in parts if part.ids is not None]
        tensors = {point: torch.cat([part[point] for part in parts]) for point in parts[0]}
        return Rows(tensors, torch.cat(ids) if len(ids) == len(parts) else None)


class BatchStream(ABC):
    """Batches of activations with a position that can be saved: what [`SAETrainer`] trains from.

    `state_is_small` says that [`state_dict`] is a few numbers, which can be taken after every batch.
    """

    state_is_small = False

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Size of the activations at each place, keyed by the place as written."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the activations."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """What was read, left out and served so far, in tokens."""

    @property
    def largest_batch(self) -> int | None:
        """The most tokens that a batch may have; `None` where there is no limit."""
        return None

    @abstractmethod
    def batches(self, tokens_per_batch: int, total: int | None = None) -> Iterator[Rows]:
        """The next batches, of `total` tokens where that is given; goes on where the previous call stopped."""

    @abstractmethod
    def sample(self, n_tokens: int) -> Rows:
        """The next tokens, at most `n_tokens`, without serving them."""

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where another number of processes stopped, given the state of each: by default, one is that of all."""
        self.load_state_dict(states[0])

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Where the activations come from, as JSON values."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what is served next, flat: tensors in main memory and JSON values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit."""


__all__ = ["BatchStream", "Rows"]
