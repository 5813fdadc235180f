"""`write_cache`: a stream of activations to shards on disk, once, for any number of runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import DataError
from ..interface import BatchStream, Rows
from . import progress
from .manifest import MANIFEST, Manifest, Shard
from .statistics import PointStatistics
from .storage import storage_for


logger = logging.getLogger(__name__)
SHARD_BYTES = 256 * 2**20
BATCH = 4096  # tokens that are taken from the stream at once
IDS = ("token_ids", "document_ids")


def write_cache(
    stream: BatchStream,
    path: str | Path,
    n_tokens: int,
    *,
    rows_per_shard: int | None = None,
    dtype: torch.dtype | None = None,
    resume: bool = False,
    disable_tqdm: bool = False,
) -> Manifest:
    """Writes the next tokens of a stream, in the order in which it serves them, to a folder of safetensors shards.

    After each shard the stream's state is saved beside it, until the cache is finished: a run that was killed goes on after its last
    whole shard, and the files become the same to the byte. The manifest comes last; without one a folder is no cache.

    Args:
        stream ([`BatchStream`]): such as an [`ActivationStream`], which has shuffled the tokens.
        path (`str` or `Path`): a new or empty folder, or with `resume` one that was begun.
        n_tokens (`int`): tokens to write. A stream that ends before makes a smaller cache, with a warning.
        rows_per_shard (`int`, *optional*): tokens per file; otherwise what makes about 256 MiB.
        dtype (`torch.dtype`, *optional*): `float32`, `bfloat16`, `float16`, or `int8` with one scale per token; otherwise the
            stream's. What it loses is measured (`fvu_floor`).
        resume (`bool`, *optional*, defaults to `False`): go on where an earlier call stopped; a finished cache stays as it is.
        disable_tqdm (`bool`, *optional*, defaults to `False`): no progress bar.

    Returns:
        [`Manifest`]: of the finished cache.

    Raises:
        DataError: if the folder holds something already, the disk is full, the stream raises it, or `resume` meets another
            stream or other settings.
    """
    folder = Path(path)
    if n_tokens < 1 or (rows_per_shard is not None and rows_per_shard < 1):
        raise DataError(f"n_tokens={n_tokens}, rows_per_shard={rows_per_shard}: both have to be at least 1.")
    if (folder / MANIFEST).is_file() and resume:
        return Manifest.open(folder)
    _check_folder(folder, resume)
    writer = _Writer(stream, folder, n_tokens, rows_per_shard, dtype)
    if resume:
        writer.restore()
    with tqdm(
        total=n_tokens, initial=writer.written, unit=" tokens", unit_scale=True, desc="cache", disable=disable_tqdm
    ) as bar:
        writer.run(bar)
    return writer.finish()


def _check_folder(folder: Path, resume: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(item.name for item in folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot write to {str(folder)!r}: {error}. Give another folder.") from error
    begun = progress.PROGRESS in found
    if found and not resume:
        advice = "resume=True (--resume) goes on with it, or give" if begun else "give a new or"
        raise DataError(f"{str(folder)!r} holds {', '.join(found[:3])} already: {advice} an empty folder.")
    for leftover in folder.glob(f"{progress.TEMPORARY}*"):  # of a killed run
        leftover.unlink(missing_ok=True)


class _Writer:
    """Rows go into the buffer of one shard; a full buffer becomes a file."""

    def __init__(
        self, stream: BatchStream, folder: Path, n_tokens: int, rows: int | None, dtype: torch.dtype | None
    ) -> None:
        self.stream, self.folder, self.n_tokens = stream, folder, n_tokens
        self.storage = storage_for(dtype, stream.dtype)
        self.shapes: dict[str, tuple[int, torch.dtype]] = {}
        for point, width in stream.widths.items():
            self.shapes |= self.storage.shapes(point, width)
        row_bytes = sum(width * kind.itemsize for width, kind in self.shapes.values()) + 8
        self.rows = min(rows or max(SHARD_BYTES // row_bytes, 1), n_tokens)
        self.statistics = {point: PointStatistics(width) for point, width in stream.widths.items()}
        self.shards: list[Shard] = []
        self.waiting: Rows | None = None  # what a shard had no room for
        self.filled = 0
        self.buffer = {
            name: torch.empty(self.rows, width, dtype=kind) for name, (width, kind) in self.shapes.items()
        } | {name: torch.empty(self.rows, dtype=torch.int32) for name in IDS}

    @property
    def written(self) -> int:
        """Tokens in whole shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def settings(self) -> dict[str, Any]:
        """What has to be equal for another call to go on."""
        facts = {"n_tokens": self.n_tokens, "rows_per_shard": self.rows, "storage": self.storage.name}
        return facts | {"dtype": str(self.storage.dtype), "widths": dict(self.stream.widths)}

    def run(self, bar: tqdm) -> None:
        """Writes shards until there are enough tokens, or no more."""
        with closing(self._batches()) as batches:  # a thread that reads ahead ends with it
            while self.written < self.n_tokens:
                size = min(self.rows, self.n_tokens - self.written)
                self._fill(batches, size, bar)
                if self.filled:
                    self._write_shard()
                if self.filled < size:
                    ended = "the data ended after %d of %d tokens: the cache holds those."
                    logger.warning(ended, self.written, self.n_tokens)
                    return

    def _fill(self, batches: Iterator[Rows], size: int, bar: tqdm) -> None:
        """Puts the next `size` rows into the buffer, or as many as there are."""
        self.filled = 0
        while self.filled < size:
            rows = self.waiting or next(batches, None)
            if rows is None:
                return
            taken = min(rows.count, size - self.filled)
            self._add(rows.part(0, taken))
            self.waiting = rows.part(taken, rows.count) if taken < rows.count else None
            bar.update(taken)

    def _batches(self) -> Generator[Rows]:
        limit = self.stream.largest_batch
        size = BATCH if limit is None else min(BATCH, limit)
        left = self.n_tokens - self.written - self.filled - (0 if self.waiting is None else self.waiting.count)
        begun = self.stream.counts.get("served")  # a sample of one that has not begun would fill its whole ring
        if left and (not begun or self.stream.sample(1).count):  # none at the end, where asking for more is an error
            yield from self.stream.batches(size, left)

    def _add(self, rows: Rows) -> None:
        stop = self.filled + rows.count
        for point, x in rows.items():
            x = x.detach().cpu()
            stored = self.storage.encode(point, x)
            served = self.storage.decode(point, stored)
            if not served.isfinite().all():
                raise DataError(
                    f"activations at {point!r} are not finite as {self.storage.name}: store them as torch.bfloat16 or "
                    "torch.float32."
                )
            self.statistics[point].add(x, served)
            for name, value in stored.items():
                self.buffer[name][self.filled : stop] = value
        for name, ids in zip(IDS, (rows.token_ids, rows.document_ids), strict=True):
            self.buffer[name][self.filled : stop] = -1 if ids is None else ids.cpu()
        self.filled = stop

    def _write_shard(self) -> None:
        name = f"activations-{len(self.shards):05d}.safetensors"
        tensors = {key: value[: self.filled] for key, value in self.buffer.items()}
        path = progress.put(self.folder, name, tensors, {"format": "pt"})
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.shards.append(Shard(name, self.filled, path.stat().st_size, sha256))
        progress.save(self.folder, self.settings, self.shards, self._state())

    def _state(self) -> dict[str, Any]:
        state = {f"stream.{key}": value for key, value in self.stream.state_dict().items()}
        for number, found in enumerate(self.statistics.values()):
            state |= {f"statistics.{number}.{key}": value for key, value in found.state_dict().items()}
        if self.waiting is not None:
            state |= {f"waiting.{n}": x.detach().cpu() for n, x in enumerate(self.waiting.values())}
            if self.waiting.ids is not None:
                state["waiting.ids"] = self.waiting.ids.cpu()
        return state

    def restore(self) -> None:
        """Goes to where the latest shard was whole."""
        found = progress.load(self.folder, self.settings)
        if found is None:
            return
        self.shards, state = found
        parts: dict[str, dict[str, Any]] = {}
        for key, value in state.items():
            owner, _, name = key.partition(".")
            parts.setdefault(owner, {})[name] = value
        self.stream.load_state_dict(parts["stream"])
        for number, statistics in enumerate(self.statistics.values()):
            names = ("mean", "sums")
            statistics.load_state_dict({name: parts["statistics"][f"{number}.{name}"] for name in names})
        if waiting := parts.get("waiting"):
            tensors: dict[str, Tensor] = {p: waiting[str(n)] for n, p in enumerate(self.statistics)}
            self.waiting = Rows(tensors, waiting.get("ids"))

    def finish(self) -> Manifest:
        """Writes the manifest, which makes the folder a cache, and forgets the progress."""
        points = {point: found.facts() for point, found in self.statistics.items()}
        source = json.loads(json.dumps(self.stream.info()))
        manifest = Manifest(points, self.storage, self.rows, tuple(self.shards), source)
        temporary = self.folder / f"{progress.TEMPORARY}{MANIFEST}"
        try:
            temporary.write_text(manifest.to_json(), encoding="utf-8")
            os.replace(temporary, self.folder / MANIFEST)
        except OSError as error:
            raise DataError(
                f"could not write {MANIFEST}: {error}. All shards are whole: go on with resume=True."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        (self.folder / progress.PROGRESS).unlink(missing_ok=True)
        return manifest
