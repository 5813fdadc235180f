"""A shuffle buffer of token rows before the host: long documents are mixed where mixing is cheap.

A token is a few bytes here and a whole activation after the host, so a buffer of a sixteenth of the ring's bytes holds
several times as many tokens as the ring: neighbouring rows of one document reach the ring far apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import TokenBatch, TokenDataset


class RowShuffle:
    """The rows of a dataset in random order, each exactly once per pass.

    Args:
        data ([`TokenDataset`]): gives the rows.
        n_bytes (`int`): size of the buffer; it holds one batch at least.
        seed (`int`): of the order.
    """

    def __init__(self, data: TokenDataset, n_bytes: int, seed: int) -> None:
        self.data, self.seed, self.draws, self.ended = data, seed, 0, False
        capacity = max(n_bytes // (4 * 4 * data.context_length), data.batch_size)
        # id, attention, keep, document of each position
        self.rows = torch.empty(4, capacity, data.context_length, dtype=torch.int32)
        self.count = 0
        self.pending = self.rows[:, :0]
        self._batches: Iterator[TokenBatch] | None = None

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        self._fill()
        if not self.count:
            raise StopIteration
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.draws) % 2**63)
        picked = torch.randperm(self.count, generator=generator)[: self.data.batch_size]
        self.draws += 1
        ids, attention, keep, documents = self.rows[:, picked].long().unbind()
        self._remove(picked)
        return TokenBatch(ids, attention, keep.bool(), documents)

    def _fill(self) -> None:
        if self._batches is None:
            self._batches = iter(self.data)
        while self.count < self.rows.shape[1]:
            if not self.pending.shape[1] and not self.ended:
                batch = next(self._batches, None)
                self.ended = batch is None
                if batch is not None:
                    parts = (batch.input_ids, batch.attention_mask, batch.keep, batch.documents)
                    self.pending = torch.stack([part.to(torch.int32) for part in parts])
            if not self.pending.shape[1]:
                return
            taken = self.pending[:, : self.rows.shape[1] - self.count]
            self.rows[:, self.count : self.count + taken.shape[1]] = taken
            self.count += taken.shape[1]
            self.pending = self.pending[:, taken.shape[1] :].clone()

    def _remove(self, picked: Tensor) -> None:
        """Closes the gaps with the last rows."""
        self.count -= len(picked)
        gone = torch.zeros(self.count + len(picked), dtype=torch.bool)
        gone[picked] = True
        gaps, movers = gone[: self.count].nonzero().squeeze(1), (~gone[self.count :]).nonzero().squeeze(1)
        self.rows[:, gaps] = self.rows[:, self.count + movers]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return self.rows.nbytes + self.pending.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides which rows come next: tensors and JSON values."""
        state = {f"data.{key}": value for key, value in self.data.state_dict().items()}
        own = {"rows": self.rows[:, : self.count].clone(), "pending": self.pending.clone()}
        return state | own | {"draws": self.draws, "ended": self.ended, "started": self._batches is not None}

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on behind what another number of processes has read; the rows that waited in their buffers are lost.

        Raises:
            DataError: as [`TokenDataset.load_states`].
        """
        self.data.load_states([_part(state, "data.") for state in states])
        self.count, self.pending, self.ended = 0, self.rows[:, :0], False
        self.draws, self._batches = max(state["draws"] for state in states), None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: if the dataset or its settings differ.
        """
        self.data.load_state_dict(_part(state, "data."))
        rows = state["rows"]
        self.count = rows.shape[1]
        self.rows[:, : self.count] = rows
        self.pending, self.draws, self.ended = state["pending"].clone(), state["draws"], state["ended"]
        # a finished pass must not be started again
        self._batches = iter(()) if self.ended else iter(self.data) if state["started"] else None


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
