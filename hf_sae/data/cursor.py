"""`Cursor`: one pass over a [`TokenDataset`], whose position can be saved at any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .batch import TokenBatch
from .documents import Document


if TYPE_CHECKING:
    from .tokens import TokenDataset


_DOCUMENTS_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 1_000_000
_CHARACTERS_PER_POSITION = 1024  # some 256 rows: who asks for little does not wait for a million characters


def characters_at_once(context_length: int) -> int:
    """How many characters of text are tokenised together; a position in a pass can be found again under the same number only."""
    return min(_CHARACTERS_AT_ONCE, _CHARACTERS_PER_POSITION * context_length)


class Cursor:
    """One pass; holds everything that changes.

    Tokens lie in `[4, n]` (id, attention, keep, document), already in row order, so a batch is a slice. The state is
    the source's position before the latest documents, the tokens that were left over then, and how many were given
    out since.
    """

    def __init__(self, dataset: TokenDataset, state: dict[str, Any] | None) -> None:
        self.dataset, self.source = dataset, dataset.source.clone()
        self.tokens = self.carry = torch.empty(4, 0, dtype=torch.long)
        self.offset, self.read, self.read_before, self.pulled, self.exhausted = 0, 0, 0, False, False
        self.before = self.source.state_dict()
        if state is not None:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.source.restart(**state["documents"])
        self.before, self.read = state["documents"], state["read"]
        self.tokens = self.carry = state["carry"].clone()
        if state["pulled"]:
            self._pull()
        self.offset = state["offset"]

    def state_dict(self) -> dict[str, Any]:
        """The position after the latest batch."""
        return {
            "settings": self.dataset.settings(),
            "documents": self.before,
            "behind": self.source.state_dict(),
            "carry": self.carry.clone(),
            "offset": self.offset,
            "pulled": self.pulled,
            "read": self.read_before,
        }

    def _pull(self) -> None:
        """Append the next documents to what is left over; at the end, pad what is left over."""
        self.before, self.read_before, self.pulled = self.source.state_dict(), self.read, True
        self.carry, self.offset = self.tokens[:, self.offset :].clone(), 0
        records, characters, at_once = [], 0, characters_at_once(self.dataset.context_length)
        for record in self.source:
            records.append(record)
            value = self.dataset.reader.value(record[1])
            characters += len(value) if hasattr(value, "__len__") else 0
            if len(records) == _DOCUMENTS_AT_ONCE or characters >= at_once:
                break
        documents = self.dataset.reader.read(records)
        self.read += sum(len(document.ids) for document in documents)
        self.tokens = torch.cat([self.carry, self._rows(documents)], dim=1)
        if not records:
            self._end_of_pass()

    def _end_of_pass(self) -> None:
        if not self.read:
            raise DataError(
                f"there are no tokens in {self.dataset.name!r} (split {self.dataset.split!r}, column "
                f"{self.dataset.reader.column!r}, rank {self.source.rank} of {self.source.world_size}): every document is "
                "empty. Choose another column or split, or use fewer processes."
            )
        if self.dataset.repeat:
            self.source.restart(self.source.epoch + 1)
            return
        self.exhausted = True
        self.tokens = self._padded(self.tokens)

    def _rows(self, documents: list[Document]) -> Tensor:
        reader, length = self.dataset.reader, self.dataset.context_length if self.dataset.truncation else None
        rows = [torch.empty(4, 0, dtype=torch.long)]
        for ids, chosen, number in documents:
            ids = ids[:length]
            keep = ~reader.left_out(ids) if chosen is None else chosen[:length] & ~reader.left_out(ids)
            row = torch.from_numpy(np.stack([ids, np.ones_like(ids), keep, np.full_like(ids, number)]))
            rows.append(row if self.dataset.packed else self._padded(row))
        return torch.cat(rows, dim=1)

    def _padded(self, tokens: Tensor) -> Tensor:
        missing = -tokens.shape[1] % self.dataset.context_length
        padding = torch.tensor([self.dataset.reader.special.fill, 0, 0, -1])
        return torch.cat([tokens, padding[:, None].expand(4, missing)], dim=1)

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> TokenBatch:
        need = self.dataset.batch_size * self.dataset.context_length
        while self.tokens.shape[1] - self.offset < need and not self.exhausted:
            self._pull()
        if self.offset == self.tokens.shape[1]:
            raise StopIteration
        taken = self.tokens[:, self.offset : self.offset + need].reshape(4, -1, self.dataset.context_length)
        self.offset += taken[0].numel()
        ids, attention, keep, documents = taken.clone().unbind()
        return self._select(TokenBatch(ids, attention, keep.bool(), documents))

    def _select(self, batch: TokenBatch) -> TokenBatch:
        if not callable(self.dataset.positions):
            return batch
        chosen = self.dataset.positions(batch)
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != batch.keep.shape:
            given = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
            raise DataError(
                f"the function positions gave {given}: it has to give a bool tensor {list(batch.keep.shape)}."
            )
        return TokenBatch(batch.input_ids, batch.attention_mask, batch.keep & chosen.cpu(), batch.documents)
