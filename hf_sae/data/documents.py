"""Records of a dataset to documents: token ids, and which of them the rule of positions chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from .positions import conversation, tokenise_conversation
from .sources import nearest


Kind = Literal["text", "chat", "tokens"]
COLUMNS = ("text", "messages", "conversations", "conversation", "input_ids", "tokens")
ROLES = ("assistant", "user")


class Document(NamedTuple):
    """Ids `[n]`, the rule's choice among them `[n]` (`None`: all) and the record's number in the dataset."""

    ids: np.ndarray
    chosen: np.ndarray | None
    number: int


class SpecialTokens:
    """The ids that decide what is left out.

    Args:
        tokenizer: of the host.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id if tokenizer.eos_token_id != self.bos else None
        pad = tokenizer.pad_token_id
        # a padding id that is also an ordinary token says nothing: then only the attention mask knows padding
        shared = pad in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        self.pad: int | None = None if shared else pad
        self.fill: int = next((i for i in (pad, tokenizer.eos_token_id, self.bos) if i is not None), 0)

    def left_out(self, ids: np.ndarray, padding: bool = True) -> np.ndarray:
        """Where `ids` are BOS or (with `padding`) the padding token."""
        out = np.zeros(ids.shape, dtype=bool)
        for special in (self.bos, self.pad if padding else None):
            if special is not None:
                out |= ids == special
        return out


class DocumentReader:
    """Finds the column that holds the documents, and turns its values into ids.

    Args:
        records (`Iterable`): the first of them decide the column and its kind.
        tokenizer: of the host.
        column (`str`, *optional*): instead of the first of `text`, `messages`, `conversations`, `conversation`,
            `input_ids`, `tokens` that the records have.
        positions: see [`hf_sae.data.TokenDataset`].

    Raises:
        DataError: if there are no records, the column is unknown or of an unknown kind, or `positions` does not fit it.
    """

    def __init__(
        self, records: Iterable[Any], tokenizer: Any, column: str | None, positions: str | Callable[..., Any]
    ) -> None:
        self.tokenizer, self.special, self.vocabulary = tokenizer, SpecialTokens(tokenizer), len(tokenizer)
        first = list(islice(records, 100))
        if not first:
            raise DataError("the dataset has no records. Check the split, the filter before it, and the path.")
        self.column = _column(first[0], column)
        self.kind = _kind([self.value(record) for record in first], self.column)
        self.role, self.mask_column = self._rule(positions, first[0])

    def _rule(self, positions: str | Callable[..., Any], record: Any) -> tuple[str | None, str | None]:
        if callable(positions) or positions == "all":
            return None, None
        if positions in ROLES:
            if self.kind != "chat":
                raise DataError(
                    f"positions={positions!r} needs conversations, and column {self.column!r} is {self.kind}. Use "
                    "positions='all', or a column of messages."
                )
            return positions, None
        columns = sorted(map(str, record)) if isinstance(record, Mapping) else []
        if self.kind == "tokens" and positions in columns:
            return None, positions
        raise DataError(
            f"positions={positions!r} is not known. Give 'all', 'assistant' or 'user' (conversations), a function of a "
            "TokenBatch, or the name of a column with a mask (only beside token ids)."
            + nearest(str(positions), columns, "columns")
        )

    def value(self, record: Any) -> Any:
        """What the record holds in the column, tensors and arrays as they are."""
        if not isinstance(record, Mapping):
            return record
        if self.column is None or self.column not in record:
            raise DataError(
                f"a record has no column {self.column!r}.{nearest(str(self.column), list(record), 'columns')}"
            )
        return record[self.column]

    def left_out(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens of a document, `[n]`, no autoencoder is trained on: BOS, and padding that is part of the data.

        A chat template writes no padding: where it writes the padding token, as some do at the end of a turn, it means it.
        """
        return self.special.left_out(ids, padding=self.kind != "chat")

    def read(self, records: Sequence[tuple[int, Any]]) -> list[Document]:
        """The documents of some `(number, record)` pairs; empty ones are left out.

        Raises:
            DataError: if a value is not of the kind of the first ones, or an id is not in the vocabulary.
        """
        present = []
        for number, record in records:
            value = self.value(record)
            if value is None or (hasattr(value, "__len__") and len(value) == 0):
                continue
            if _kind([value], self.column) != self.kind:
                raise DataError(
                    f"record {number} holds {_kind([value], self.column)}, the first records {self.kind}. "
                    "Make the column uniform, or filter such records out."
                )
            present.append((number, record, value))
        if self.kind == "text":
            return self._texts(present)
        make = self._chat if self.kind == "chat" else self._tokens
        return [document for item in present if len((document := make(*item)).ids)]

    def _texts(self, present: list[tuple[int, Any, str]]) -> list[Document]:
        if not present:
            return []
        encoded = self.tokenizer([text for _, _, text in present], verbose=False)["input_ids"]
        bos, eos = self.special.bos, self.special.eos
        documents = []
        for (number, _, _), ids in zip(present, encoded, strict=True):
            if ids[:2] == [bos, bos]:  # a text that begins with its BOS already, such as a rendered conversation
                ids = ids[1:]
            before = [bos] if bos is not None and ids[:1] != [bos] else []
            after = [eos] if eos is not None and ids[-1:] != [eos] else []
            documents.append(Document(np.array(before + ids + after, dtype=np.int64), None, number))
        return documents

    def _chat(self, number: int, record: Any, value: Any) -> Document:
        messages = conversation(value, number)
        ids, mask = tokenise_conversation(self.tokenizer, messages, number, self.role)
        return Document(np.array(ids, dtype=np.int64), None if mask is None else np.array(mask, dtype=bool), number)

    def _tokens(self, number: int, record: Any, value: Any) -> Document:
        ids = np.asarray(value)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(
                f"record {number} has ids of type {ids.dtype} and shape {ids.shape}: give a list of integers."
            )
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise DataError(
                f"record {number} has the id {wrong}, and the tokenizer's ids are 0 to {self.vocabulary - 1}. The "
                "dataset was tokenised with another tokenizer: use that one and its model, or the text."
            )
        real = np.ones(len(ids), dtype=bool)
        if isinstance(record, Mapping) and record.get("attention_mask") is not None:
            real = self._beside(record, "attention_mask", number, len(ids))
        elif self.special.pad is not None:
            inner = np.flatnonzero(ids != self.special.pad)
            real[: inner[0] if len(inner) else len(ids)] = False
            real[inner[-1] + 1 if len(inner) else 0 :] = False
        chosen = None if self.mask_column is None else self._beside(record, self.mask_column, number, len(ids))[real]
        return Document(ids.astype(np.int64)[real], chosen, number)

    def _beside(self, record: Any, column: str, number: int, length: int) -> np.ndarray:
        mask = np.asarray(record[column])
        if mask.shape != (length,) or mask.dtype.kind not in "biu":
            raise DataError(
                f"record {number}: the mask {column!r} has type {mask.dtype} and shape {mask.shape}; it needs one 0 or 1 "
                f"for each of the {length} ids."
            )
        return mask.astype(bool)


def _column(record: Any, column: str | None) -> str | None:
    if not isinstance(record, Mapping):
        if column is not None:
            raise DataError(
                f"column={column!r} was given, and the records are {type(record).__name__}, without columns."
            )
        return None
    columns = [str(name) for name in record]
    if column is not None:
        if column not in columns:
            raise DataError(f"there is no column {column!r}.{nearest(column, columns, 'columns')}")
        return column
    found = next((name for name in COLUMNS if name in columns), None)
    if found is None:
        raise DataError(
            f"none of the columns is one of {', '.join(COLUMNS)}; say which it is with column=."
            + nearest("text", columns, "columns")
        )
    return found


def _kind(values: list[Any], column: str | None) -> Kind:
    value = next((v for v in values if v is not None and (not hasattr(v, "__len__") or len(v))), None)
    if value is None:
        raise DataError(
            f"the first {len(values)} records of column {column!r} are empty. Choose another with column=."
        )
    if isinstance(value, str):
        return "text"
    if hasattr(value, "tolist"):
        return "tokens"
    if isinstance(value, (list, tuple)):
        if isinstance(value[0], Mapping):
            return "chat"
        if not isinstance(value[0], str):
            return "tokens"
    raise DataError(
        f"column {column!r} holds {type(value).__name__}"
        + (f" of {type(value[0]).__name__}" if isinstance(value, (list, tuple)) else "")
        + ". A document is a text, a list of messages, or a list of token ids; choose another column with column=."
    )
