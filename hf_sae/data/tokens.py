"""Text, conversations and token ids to batches of tokens for a host.

* What is left out is decided by the tokenizer and the attention mask, never by activations: padding and BOS.
* The position can be saved at any batch and restored exactly, in another process too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .batch import TokenBatch
from .cursor import Cursor, characters_at_once
from .documents import DocumentReader
from .sources import open_source


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
        self._cursor: Cursor | None = None
        self._loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[TokenBatch]:
        state, self._loaded = self._loaded, None
        self._cursor = Cursor(self, state)
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
            "characters_at_once": characters_at_once(self.context_length),
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
            return self._loaded or Cursor(self, None).state_dict()
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


def _name(positions: Positions) -> str:
    return positions if isinstance(positions, str) else getattr(positions, "__qualname__", type(positions).__name__)


__all__ = ["Positions", "TokenDataset"]
