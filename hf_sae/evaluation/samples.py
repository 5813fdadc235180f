"""The tokens an evaluation runs on: gathered once, so that every pass and every autoencoder sees the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..corpus import corpus_info, stdlib_corpus
from ..data import TokenBatch, TokenDataset
from ..errors import DataError


@dataclass
class EvalBatch:
    """Inputs of one host call and which of its positions count.

    Args:
        inputs (`dict`): keyword arguments of the host.
        keep (`Tensor`, *optional*): `[batch, length]`, positions that are scored and replaced. Inputs that are not text
            (pixels, audio) do not say how many positions they have: it is filled in when the host has run.
        documents (`Tensor`, *optional*): `[batch, length]`, the document of each position.
    """

    inputs: dict[str, Tensor]
    keep: Tensor | None = None
    documents: Tensor | None = None

    @property
    def attention_mask(self) -> Tensor | None:
        """`[batch, length]`, 0 on padding; `None` where nothing is padded."""
        return self.inputs.get("attention_mask")

    @property
    def keep_known(self) -> Tensor:
        """`keep`, once the host has run."""
        return _known(self.keep)

    @property
    def documents_known(self) -> Tensor:
        """`documents`, once the host has run."""
        return _known(self.documents)

    def first_rows(self, rows: int) -> EvalBatch:
        """The batch without the rows after the first `rows`."""
        cut = {key: value[:rows] for key, value in self.inputs.items()}
        keep, documents = self.keep, self.documents
        return EvalBatch(cut, None if keep is None else keep[:rows], None if documents is None else documents[:rows])


@dataclass
class Sample:
    """The evaluated batches, and what identifies them."""

    batches: list[EvalBatch] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    seen: int = 0
    kept: int = 0
    _digest: Any = field(default_factory=hashlib.sha256, repr=False)

    @property
    def sha256(self) -> str:
        """Hash of the inputs without their padding, which does not depend on the batch size."""
        return self._digest.hexdigest()

    def add(self, batch: EvalBatch) -> None:
        """Append a batch whose `keep` is known."""
        keep, mask = batch.keep_known, batch.attention_mask
        self.batches.append(batch)
        self.kept += int(keep.sum())
        self.seen += keep.numel() if mask is None or mask.shape != keep.shape else int(mask.sum())
        for row in range(len(keep)):
            for key in sorted(batch.inputs):
                value = batch.inputs[key][row]
                if key == "input_ids" and mask is not None:
                    value = value[mask[row].bool()]
                if key != "attention_mask":
                    self._digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def documents(self) -> Tensor:
        """The documents of the kept positions, each once."""
        return torch.cat([batch.documents_known[batch.keep_known] for batch in self.batches]).unique()

    @property
    def context_length(self) -> int:
        """Positions per row, of the longest batch."""
        return max(batch.keep_known.shape[1] for batch in self.batches)

    @property
    def has_text(self) -> bool:
        """Whether every batch has token ids, so that next-token losses are defined."""
        return all("input_ids" in batch.inputs for batch in self.batches)


def _known(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise DataError("a batch without positions: it has to run through the host before it is counted.")
    return tensor


def public_name(name: str) -> str:
    """A name as it may be published: of an absolute path, only the last part."""
    return Path(name).name if Path(name).is_absolute() else name


def trim(batch: EvalBatch, room: int) -> EvalBatch:
    """The leading rows of a batch that hold `room` kept tokens, the last of them whole."""
    if batch.keep is None:
        return batch
    before = batch.keep.sum(-1).cumsum(0) - batch.keep.sum(-1)
    return batch.first_rows(int((before < room).sum()))


def open_source(
    dataset: Any,
    tokenizer: Any,
    *,
    context_length: int,
    batch_size: int,
    positions: Any,
    column: str | None,
    split: str | None,
    seed: int,
) -> tuple[Iterator[EvalBatch], dict[str, Any]]:
    """The batches of a dataset, one at a time, and what is known of where they come from.

    Args:
        dataset: anything [`TokenDataset`] takes; a [`TokenDataset`]; an iterable of [`TokenBatch`] or of the host's own
            inputs (mappings of tensors, as an image processor or a `DataLoader` gives them); `None` for the test split
            of the standard-library corpus.

    Raises:
        DataError: if text is given without a tokenizer.
    """
    if dataset is None:
        source, info = stdlib_corpus("test"), dict(corpus_info("test"))
    else:
        source, info = dataset, {}
    if _is_ready(source):
        return _from_ready(source), _given_info(source)
    if tokenizer is None:
        raise DataError("text needs its tokenizer: pass the host's, or give batches of host inputs as the dataset.")
    tokens = TokenDataset(
        source,
        tokenizer,
        context_length=context_length,
        batch_size=batch_size,
        positions=positions,
        column=column,
        split=split or "test",
        seed=seed,
    )
    given = _given_info(tokens)
    if not isinstance(source, str | Path | Mapping):
        known = getattr(source, "split", None)  # of data in memory, only what it says itself
        given["split"] = None if known is None else str(known)
    return _from_ready(tokens), given | info


def _given_info(source: Any) -> dict[str, Any]:
    info = source.info() if isinstance(source, TokenDataset) else {"dataset": type(source).__name__}
    public = {key: public_name(value) if isinstance(value, str) else value for key, value in info.items()}
    return {"name": public.pop("dataset", None), **public}


def _is_ready(dataset: Any) -> bool:
    if isinstance(dataset, TokenDataset | torch.utils.data.DataLoader):
        return True
    first = dataset[0] if isinstance(dataset, list | tuple) and dataset else None
    tensors = isinstance(first, Mapping) and any(isinstance(value, Tensor) for value in first.values())
    return isinstance(first, TokenBatch) or tensors


def _from_ready(batches: Iterable[Any]) -> Iterator[EvalBatch]:
    row = 0
    for batch in batches:
        if isinstance(batch, TokenBatch):
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            yield EvalBatch(inputs, batch.keep, batch.documents)
            continue
        inputs = {key: value for key, value in batch.items() if isinstance(value, Tensor) and key != "labels"}
        rows = len(next(iter(inputs.values())))
        yield EvalBatch(inputs, documents=torch.arange(row, row + rows)[:, None])
        row += rows


def place_positions(batch: EvalBatch, shape: tuple[int, ...]) -> EvalBatch:
    """The batch with `keep` and `documents` of the shape `[batch, length]` of its activations.

    Raises:
        DataError: if the activations do not have the positions of the batch.
    """
    mask = batch.attention_mask
    keep = batch.keep
    if keep is None:
        fits = mask is not None and mask.shape == shape
        keep = mask.bool() if fits and mask is not None else torch.ones(shape, dtype=torch.bool)
    if keep.shape != shape:
        raise DataError(
            f"the hook point gives activations of shape {tuple(shape)} for inputs of shape {tuple(keep.shape)}: "
            "positions do not match. Choose a place with one vector per token."
        )
    documents = torch.zeros(shape, dtype=torch.long) if batch.documents is None else batch.documents.expand(shape)
    return EvalBatch(batch.inputs, keep.cpu(), documents.cpu())
