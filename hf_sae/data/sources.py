"""Datasets of every kind as one thing: records in a known order, from a position that can be saved and restored."""

from __future__ import annotations

import copy
import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError
from ..models.pinning import no_answer


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BUILDERS = {
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
    "txt": "text",
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "csv",
}
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}


class Source(ABC):
    """Records of a dataset, epoch after epoch; `next(source)` gives `(row number, record)`.

    Args:
        dataset: what is read; see the subclasses.
        seed (`int`): of the order of the records, where the dataset has one to choose.
        rank (`int`), world_size (`int`): this process reads every `world_size`-th record, the first one being `rank`.
    """

    def __init__(self, dataset: Any, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.dataset, self.seed, self.rank, self.world_size = dataset, seed, rank, world_size
        self.revision: str | None = None
        self.epoch = self.taken = 0
        self.restart(0)

    def restart(self, epoch: int, taken: int = 0, position: dict[str, Any] | None = None) -> None:
        """Go to the place where `taken` records of epoch `epoch` are behind; `position` is a stream's own state."""
        self.epoch, self.taken = epoch, taken
        self._records = self._open(position)

    @abstractmethod
    def _open(self, position: dict[str, Any] | None) -> Iterator[tuple[int, Any]]:
        """The records of `self.epoch` after the first `self.taken`."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        item = next(self._records)
        self.taken += 1
        return item

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON values."""
        return {"epoch": self.epoch, "taken": self.taken, "position": None}

    def after(self, positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The position of this process after what others read of the same records, where those were another number of processes.

        Reading goes on behind the furthest record that any of them has read: no record is read again in this epoch, and
        the few that a slower process had not come to are left out.

        Args:
            positions: of all the other processes.
        """
        epoch = max(position["epoch"] for position in positions)
        behind = len(positions) * max(position["taken"] for position in positions if position["epoch"] == epoch)
        return {"epoch": epoch, "taken": max(0, -(-(behind - self.rank) // self.world_size)), "position": None}

    def clone(self) -> Source:
        """The same records, read independently of this source and from the beginning."""
        return type(self)(self.dataset, seed=self.seed, rank=self.rank, world_size=self.world_size)

    @property
    def rows(self) -> int | None:
        """Number of records of the whole dataset, where it is known."""
        return None


class MapSource(Source):
    """A dataset with a length and an index: each epoch has its own order, drawn from the seed."""

    def _open(self, position: dict[str, Any] | None) -> Iterator[tuple[int, Any]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(len(self.dataset), generator=generator)[self.rank :: self.world_size]
        return ((int(i), self.dataset[int(i)]) for i in order[self.taken :])

    @property
    def rows(self) -> int | None:
        """Number of records of the whole dataset."""
        return len(self.dataset)


class IterableSource(Source):
    """Anything that can be iterated again from the start: its own order, restored by counting."""

    def _open(self, position: dict[str, Any] | None) -> Iterator[tuple[int, Any]]:
        for number, record in enumerate(self.dataset):
            turn, remainder = divmod(number - self.rank, self.world_size)
            if remainder == 0 and turn >= self._skipped:
                yield number, record

    def restart(self, epoch: int, taken: int = 0, position: dict[str, Any] | None = None) -> None:
        """As in [`Source`]; the records that are behind are read and thrown away."""
        self._skipped = taken
        super().restart(epoch, taken, position)


class StreamSource(Source):
    """A `datasets.IterableDataset`: its own order, restored by its own state.

    `row number` counts the records that this rank reads. A shuffle buffer's contents are not part of a stream's state,
    so streams that have one are restored by reading the epoch again up to the position.
    """

    def _open(self, position: dict[str, Any] | None) -> Iterator[tuple[int, Any]]:
        # a stream keeps its position inside itself: two readers of one object would move each other
        self._stream: IterableDataset = copy.deepcopy(self.dataset)
        if self.world_size > 1:
            from datasets.distributed import split_dataset_by_node

            self._stream = split_dataset_by_node(self._stream, self.rank, self.world_size)
        self._stream.set_epoch(self._first_epoch() + self.epoch)
        skip = self.taken
        if position is not None:
            self._stream.load_state_dict(position)
            skip = 0
        return self._numbered(iter(self._stream), skip)

    def _numbered(self, records: Iterator[Any], skip: int) -> Iterator[tuple[int, Any]]:
        for _ in range(skip):
            next(records, None)
        yield from enumerate(records, start=self.taken)

    def _first_epoch(self) -> int:
        return int(getattr(self.dataset, "epoch", 0) or 0)

    def after(self, positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As in [`Source`], where the stream gives single records in turn.

        Raises:
            DataError: if it gives whole files to each process: which records those are depends on their number.
        """
        files = getattr(self.dataset, "num_shards", 1)
        if any(count > 1 and files % count == 0 for count in (self.world_size, len(positions))):
            raise DataError(
                f"the position was saved by {len(positions)} processes, each of which read whole files of this stream, and cannot "
                f"be continued by {self.world_size}. Resume with {len(positions)} processes, or train from a cache of activations."
            )
        return super().after(positions)

    def state_dict(self) -> dict[str, Any]:
        """The position, with the stream's own state where that is exact."""
        exact = self.taken > 0 and not _has_shuffle_buffer(self.dataset)
        return {**super().state_dict(), "position": self._stream.state_dict() if exact else None}


def _has_shuffle_buffer(stream: Any) -> bool:
    pending, seen = [getattr(stream, "_ex_iterable", None)], 0
    while pending and seen < 1000:
        node, seen = pending.pop(), seen + 1
        if node is None:
            continue
        if "BufferShuffled" in type(node).__name__:
            return True
        pending += [getattr(node, "ex_iterable", None), *(getattr(node, "ex_iterables", None) or ())]
    return False


def open_source(dataset: Any, *, split: str, seed: int = 0, rank: int = 0, world_size: int = 1) -> Source:
    """A [`Source`] for a Hub id, a path, a dataset object or any iterable that can be read twice.

    Args:
        dataset: see [`hf_sae.data.TokenDataset`].
        split (`str`): taken from a Hub dataset, a folder or a dictionary of splits.
        seed, rank, world_size: see [`Source`].

    Raises:
        DataError: if there is nothing to read at that place, or `dataset` can be read only once.
    """
    from datasets import IterableDataset

    if not 0 <= rank < world_size:
        raise DataError(f"rank {rank} of world_size {world_size}: give 0 <= rank < world_size.")
    if isinstance(dataset, (str, Path)):
        revision = revision_of(str(dataset))
        source = open_source(
            load(str(dataset), split, revision), split=split, seed=seed, rank=rank, world_size=world_size
        )
        source.revision = revision
        return source
    sharding = {"seed": seed, "rank": rank, "world_size": world_size}
    if isinstance(dataset, Mapping):
        dataset = _split_of(dataset, split)
    if isinstance(dataset, IterableDataset):
        return StreamSource(dataset, **sharding)
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return MapSource(dataset.with_format(None) if hasattr(dataset, "with_format") else dataset, **sharding)
    if isinstance(dataset, Iterator) or not isinstance(dataset, Iterable):
        raise DataError(
            f"a dataset of type {type(dataset).__name__} cannot be read twice, so its position cannot be restored. Pass a "
            "Hub id, a path, a datasets.Dataset or IterableDataset (IterableDataset.from_generator takes a generator "
            "function), or a list of texts or records."
        )
    return IterableSource(dataset, **sharding)


def _split_of(splits: Mapping[str, Any], split: str) -> Any:
    if split in splits:
        return splits[split]
    raise DataError(f"there is no split {split!r}.{nearest(split, list(splits), 'splits')}")


def load(path: str, split: str, revision: str | None = None) -> Dataset | IterableDataset:
    """Open a Hub id (streamed) or a local file, folder or `save_to_disk` folder; a file is its own split.

    Raises:
        DataError: if nothing is there, the file's kind is unknown, or the split or the columns cannot be read.
    """
    import datasets

    place = Path(path).expanduser()
    if place.is_dir() and any((place / name).exists() for name in ("state.json", "dataset_dict.json")):
        stored = datasets.load_from_disk(str(place))
        return _split_of(stored, split) if isinstance(stored, Mapping) else stored
    builder, options = path, _given(revision=revision)
    if place.is_dir():
        builder = str(place)
    elif place.is_file():
        delimiter = "\t" if _suffix(place) == "tsv" else None
        builder, options = _file_builder(place), _given(data_files={split: str(place)}, delimiter=delimiter)
    elif _is_path(path):
        raise DataError(
            f"there is no file or folder {path!r}. Give an existing path, or a Hub id such as 'user/dataset'."
        )
    try:
        return datasets.load_dataset(builder, split=split, streaming=True, **options)
    except (ValueError, FileNotFoundError) as error:
        raise DataError(
            f"dataset {path!r}, split {split!r}, cannot be opened: {error} Check the name and the split; where a "
            "configuration has to be chosen, pass datasets.load_dataset(name, configuration, streaming=True)."
        ) from error


def _is_path(path: str) -> bool:
    """Whether `path` is meant as a place on this machine; what exists here always is."""
    place = Path(path).expanduser()
    spelled = path.startswith((".", "/", "~")) or path.count("/") > 1 or _suffix(place) in _BUILDERS
    return spelled or place.exists()


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _suffix(path: Path) -> str:
    suffixes = [s for s in path.suffixes if s not in _COMPRESSED]
    return suffixes[-1][1:].lower() if suffixes else ""


def _file_builder(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in _BUILDERS:
        known = ", ".join(f".{name}" for name in _BUILDERS)
        raise DataError(f"{str(path)!r} is of an unknown kind. Files that are read: {known} (also compressed).")
    return _BUILDERS[suffix]


def revision_of(path: str) -> str | None:
    """The commit a Hub dataset stands at now, or `None` for local data and where the Hub does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if _is_path(path):
        return None
    try:
        return HfApi().dataset_info(path, timeout=10).sha
    except (HFValidationError, *no_answer()):  # the load that follows reports what is wrong
        return None


def nearest(name: str, known: list[str], what: str) -> str:
    """The part of an error that lists what there is and what was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f" The {what} are: {', '.join(map(repr, known)) or 'none'}.{guess}"
