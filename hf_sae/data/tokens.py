"""Text, conversations and token ids to batches of tokens for a host.

* What is left out is decided by the tokenizer and the attention mask, never by activations: padding and BOS.
* The position can be saved at any batch and restored exactly, in another process too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..corpus import stdlib_corpus
from ..errors import DataError
from .documents import Document, DocumentReader
from .sources import open_source


_DOCUMENTS_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 1_000_000


@dataclass(frozen=True)
class TokenBatch:
    """One batch for the host.

    Args:
        input_ids (`Tensor`): `[B, T]` long.
        attention_mask (`Tensor`): `[B, T]` long; 0 is padding, always on the right.
        keep (`Tensor`): `[B, T]` bool; the positions that an autoencoder is trained and evaluated on.
        documents (`Tensor`): `[B, T]` long; number of the record in the dataset that a token comes from (in a stream:
            among the records that this rank reads), -1 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    documents: Tensor


Positions = str | Callable[[TokenBatch], Tensor]


class TokenDataset:
    """An iterable of [`TokenBatch`].

    Iterating starts at the beginning, or at the state just loaded. Each pass over a dataset with a length has its own
    order of documents, drawn from `seed`, the first one too; streams and plain iterables keep their order (shuffle the
    stream itself with `IterableDataset.shuffle`: its buffer is refilled by reading again when a state is loaded).

    Args:
        dataset: a Hub id, a json, jsonl, txt, parquet, csv or tsv file, a folder, a `save_to_disk` folder, a
            `datasets.Dataset` or `IterableDataset`, or any re-iterable of texts or records. The lines of a txt file
            are documents, as in `datasets`.
        tokenizer: of the host. Each text starts with its BOS and ends with its EOS, where it has them and they differ;
            conversations are as its chat template writes them, token ids are taken as they are.
        context_length (`int`, *optional*, defaults to 128): tokens per row, T.
        batch_size (`int`, *optional*, defaults to 16): rows per batch, B.
        packed (`bool`, *optional*):
            `True`: documents follow each other and are cut into full rows; the remainder is carried over, and only the last
            row of all is padded. `False`: each document has rows of its own, padded on the right. `None`: conversations have
            rows of their own, everything else is packed. In packed rows a conversation sees the ones before it, and most
            begin in the middle of a row; hosts are trained on them apart (Li et al. 2025, FAST, arXiv 2506.07691).
        truncation (`bool`, *optional*, defaults to `False`):
            Leave out what of a document is behind its first row, instead of giving it further rows, which begin in the
            middle of it. Needs rows of their own.
        positions (`str` or `Callable`, *optional*, defaults to `"all"`):
            `"all"`; `"assistant"` or `"user"`, what that role wrote in conversations; the name of a column with a mask
            beside token ids; or a function from a batch to a bool mask `[B, T]`. Padding and BOS are never kept.
        column (`str`, *optional*): which column; otherwise the first of `text`, `messages`, `conversations`,
            `conversation`, `input_ids`, `tokens`.
        split (`str`, *optional*, defaults to `"train"`): of a Hub dataset, a folder or a dictionary of splits.
        seed (`int`, *optional*, defaults to 0): of the order of documents.
        repeat (`bool`, *optional*, defaults to `False`): start again for ever instead of ending.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1):
            This process reads the documents `rank::world_size`.

    Raises:
        DataError: if the dataset cannot be opened or is empty, or the arguments do not fit it.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        *,
        context_length: int = 128,
        batch_size: int = 16,
        packed: bool | None = None,
        truncation: bool = False,
        positions: Positions = "all",
        column: str | None = None,
        split: str = "train",
        seed: int = 0,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if context_length < 1 or batch_size < 1:
            raise DataError(f"context_length={context_length}, batch_size={batch_size}: both have to be at least 1.")
        self.source = open_source(dataset, split=split, seed=seed, rank=rank, world_size=world_size)
        first = (record for _, record in self.source.clone())
        self.reader = DocumentReader(first, tokenizer, column, positions)
        self.tokenizer, self.positions, self.split, self.seed, self.repeat = tokenizer, positions, split, seed, repeat
        self.context_length, self.batch_size = context_length, batch_size
        self.packed = self.reader.kind != "chat" if packed is None else packed
        self.truncation = truncation
        if self.packed and truncation:
            raise DataError(
                f"truncation=True leaves out what does not fit into a document's own row, and {self.reader.kind} documents are "
                "packed here. Pass packed=False, or leave truncation out."
            )
        known = getattr(getattr(dataset, "info", None), "dataset_name", None)
        self.name = str(dataset) if isinstance(dataset, (str, Path)) else known or type(dataset).__name__
        self._cursor: _Cursor | None = None
        self._loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[TokenBatch]:
        state, self._loaded = self._loaded, None
        self._cursor = _Cursor(self, state)
        return self._cursor

    @property
    def epoch(self) -> int:
        """Number of passes over the dataset that the latest iterator has completed."""
        return 0 if self._cursor is None else self._cursor.source.epoch

    def settings(self) -> dict[str, Any]:
        """What has to be equal for a state to fit."""
        return {
            "kind": self.reader.kind,
            "column": self.reader.column,
            "context_length": self.context_length,
            "packed": self.packed,
            "truncation": self.truncation,
            "positions": _name(self.positions),
            "seed": self.seed,
            "rank": self.source.rank,
            "world_size": self.source.world_size,
            "source": type(self.source).__name__,
            "rows": self.source.rows,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position after the latest batch: JSON values and tensors."""
        if self._cursor is None:
            return self._loaded or _Cursor(self, None).state_dict()
        return self._cursor.state_dict()

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Let the next iteration go on behind what another number of processes has read, given the state of each.

        No document is read again in this epoch. Tokens that had been read and not given out are lost.

        Raises:
            DataError: if the states were taken from another dataset or under other settings, or the dataset is a stream that
                gives whole files to each process.
        """
        for state in states:
            self._require_settings(state, other={"rank", "world_size"})
        documents = self.source.after([state["behind"] for state in states])
        empty = torch.empty(4, 0, dtype=torch.long)
        # of the epoch some tokens were read: its end is then no sign of an empty dataset
        read = max(state["read"] for state in states) + 1
        fresh = {
            "documents": documents,
            "behind": documents,
            "carry": empty,
            "offset": 0,
            "pulled": False,
            "read": read,
        }
        fresh["settings"] = self.settings()
        self._loaded, self._cursor = fresh, None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Raises:
            DataError: if the state was taken from another dataset or under other settings.
        """
        self._require_settings(state)
        self._loaded, self._cursor = dict(state), None

    def _require_settings(self, state: dict[str, Any], other: Collection[str] = ()) -> None:
        for name, here in self.settings().items():
            if name not in other and state["settings"].get(name) != here:
                raise DataError(
                    f"the state was saved with {name}={state['settings'].get(name)!r}, and this dataset has {here!r}. "
                    "Resume with the dataset and the arguments of the first run, or start afresh."
                )

    def info(self) -> dict[str, Any]:
        """Where the tokens come from and what was left out of them, as JSON values."""
        special = self.reader.special
        stored = getattr(self.source.dataset, "info", None)
        return {
            **self.settings(),
            "dataset": self.name,
            "revision": self.source.revision,
            "fingerprint": getattr(self.source.dataset, "_fingerprint", None),
            "dataset_name": getattr(stored, "dataset_name", None),
            "split": self.split,
            "tokenizer": str(getattr(self.tokenizer, "name_or_path", "")) or type(self.tokenizer).__name__,
            "left_out": {"padding": True, "bos": special.bos, "pad": special.pad},
        }


class _Cursor:
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
        records, characters = [], 0
        for record in self.source:
            records.append(record)
            value = self.dataset.reader.value(record[1])
            characters += len(value) if hasattr(value, "__len__") else 0
            if len(records) == _DOCUMENTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
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

    def __iter__(self) -> _Cursor:
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


def _name(positions: Positions) -> str:
    return positions if isinstance(positions, str) else getattr(positions, "__qualname__", type(positions).__name__)


__all__ = ["TokenBatch", "TokenDataset", "stdlib_corpus"]
