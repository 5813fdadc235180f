"""Writing a feature dataset: rows come in batches, files appear all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .arrow import Rows, as_table
from .checks import TableChecker
from .manifest import MANIFEST, EmbeddingModel, Manifest, SAESource, Shard, is_feature_dataset
from .schema import TABLES, Table, table_of


ROW_GROUP = 2048  # rows: what is read at least to see one feature
GROUP_BYTES = 64 << 20  # long contexts: the Hub's viewer reads no row group of more than about 280 MB
SHARD_BYTES = 256 << 20


class FeatureWriter:
    """Writes the tables of a feature dataset, or some tables of one that exists.

    Rows of a table come sorted by `sae_id` and `feature`, in as many batches as is convenient; tables may take turns. Memory
    stays bounded by a row group per table. When the block ends, the whole folder is put in place at once; after an error the
    folder is as it was before.

    Args:
        folder (`str` or `Path`): where to write.
        saes (`dict[str, SAESource]`, *optional*): the autoencoders by the `sae_id` that rows carry. Without it the folder has
            to hold a feature dataset, whose other tables and description stay.
        data (`dict`, *optional*): the text that was read, in plain values.
        embedding ([`EmbeddingModel`], *optional*): what made the vectors.
        overwrite (`bool`): with `saes`, replace a feature dataset that is there; its README stays.
        shard_bytes (`int`): a file that has grown beyond it is followed by another.

    Raises:
        DataError: if the folder holds something else, rows are not as the schema says, or the disk is full.

    Example:
        ```python
        with FeatureWriter("features", {"layer_8": SAESource.of(sae)}, data={"name": "org/dataset"}) as writer:
            writer.append("features", rows)
        ```
    """

    def __init__(
        self,
        folder: str | Path,
        saes: Mapping[str, SAESource] | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        embedding: EmbeddingModel | None = None,
        overwrite: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        before = _before(self.folder, saes, overwrite)
        manifest = before or Manifest(dict(saes or {}))
        if data is not None:
            manifest = replace(manifest, data=dict(data))
        if embedding is not None:
            manifest = replace(manifest, embedding=embedding)
        self._other_vectors = before is not None and manifest.embedding != before.embedding
        manifest.to_json()  # what cannot be written is better known before the work
        self.manifest = manifest
        self._sinks: dict[str, _Sink] = {}
        self._place: Path | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            # beside the destination: one file system, so that the last step is a rename
            self._place = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
            (self._place / "new" / "data").mkdir(parents=True)
        except OSError as error:
            raise self._not_written(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failure:
            raise self._not_written(failure) from failure
        finally:
            for sink in self._sinks.values():
                with suppress(OSError):  # the disk is full: what is half-written goes away with its folder
                    sink.close()
            if self._place is not None:
                shutil.rmtree(self._place, ignore_errors=True)

    def append(self, table: str, rows: Rows) -> None:
        """Adds rows to a table.

        Args:
            table (`str`): `features`, `examples`, `explanations` or `embeddings`.
            rows (`pyarrow.Table` or dictionaries): the columns of [`hf_sae.features.schema`]; those that may be null may be left out.

        Raises:
            DataError: if a row is not as the schema says, does not follow on the last one, or cannot be written.
        """
        if self._place is None:
            raise DataError("rows are appended inside the block: `with FeatureWriter(…) as writer: writer.append(…)`.")
        kind = table_of(table)
        if table not in self._sinks:
            self._sinks[table] = _Sink(kind, self.manifest, self._place / "new", self.shard_bytes)
        try:
            self._sinks[table].append(as_table(rows, kind))
        except OSError as error:
            raise self._not_written(error) from error

    def _finish(self) -> None:
        """Completes the new folder and swaps it for the old one."""
        place = self._place or self.folder
        new, old = place / "new", place / "old"
        kept = {name: s for name, s in self.manifest.shards.items() if name not in self._sinks}
        if self._other_vectors and "embeddings" in kept:
            raise DataError(
                "embedding= names another model than the vectors of the folder: append the new vectors too."
            )
        # a table without rows is a file too: a reader need not know which are empty
        for name in (name for name in TABLES if name not in kept and name not in self._sinks):
            self._sinks[name] = _Sink(TABLES[name], self.manifest, new, self.shard_bytes)
        shards = kept | {name: tuple(sink.finish()) for name, sink in self._sinks.items()}
        self.manifest = replace(self.manifest, shards={name: shards[name] for name in TABLES})
        (new / MANIFEST).write_text(self.manifest.to_json(), encoding="utf-8")
        if self.folder.exists():
            _carry_over(self.folder, new, {shard.file for shards in kept.values() for shard in shards})
            self.folder.rename(old)
        try:
            new.rename(self.folder)
        except OSError:
            if old.exists():
                old.rename(self.folder)
            raise

    def _not_written(self, error: OSError) -> DataError:
        return DataError(
            f"could not write to {str(self.folder)!r}: {error}. Nothing was changed there; free space or choose another folder."
        )


class _Sink:
    """The files of one table: rows are gathered into row groups, row groups into shards."""

    def __init__(self, table: Table, manifest: Manifest, root: Path, shard_bytes: int) -> None:
        self.table, self.root, self.shard_bytes = table, root, shard_bytes
        self.checker = TableChecker(table, manifest)
        self.shards: list[Shard] = []
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def append(self, rows: pa.Table) -> None:
        self.checker.check(rows)
        if rows.num_rows:
            self._waiting.append(rows)
        self._drain(ROW_GROUP)

    def finish(self) -> list[Shard]:
        self._drain(1)
        if not self.shards:
            self._start()  # without a row group: `datasets` cannot read an empty one
        self.close()
        return self.shards

    def close(self) -> None:
        """Closes the file that is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _drain(self, at_least: int) -> None:
        """Writes full row groups, and what is left where it is at least so many rows or too large to wait."""
        waiting = sum(rows.num_rows for rows in self._waiting)
        size = sum(rows.nbytes for rows in self._waiting)
        if not waiting or (waiting < at_least and size < GROUP_BYTES):
            return
        rows = pa.concat_tables(self._waiting)
        step = max(1, min(ROW_GROUP, GROUP_BYTES * waiting // max(size, 1)))
        whole = waiting if at_least == 1 or size >= GROUP_BYTES else waiting // step * step
        for start in range(0, whole, step):
            self._write(rows.slice(start, min(step, whole - start)))
        self._waiting = [rows.slice(whole)] if whole < waiting else []

    def _write(self, rows: pa.Table) -> None:
        writer = self._writer or self._start()
        writer.write_table(rows, row_group_size=rows.num_rows)
        first, last = (_key(rows, i) for i in (0, rows.num_rows - 1))
        shard = self.shards[-1]
        shard = self.shards[-1] = Shard(shard.file, shard.rows + rows.num_rows, shard.first or first, last)
        if (self.root / shard.file).stat().st_size >= self.shard_bytes:
            self.close()

    def _start(self) -> pq.ParquetWriter:
        file = f"data/{self.table.name}-{len(self.shards):05d}.parquet"
        order = [pq.SortingColumn(0), pq.SortingColumn(1)]
        # bounds of lists and texts help nobody, and would be most of the footer that every reader fetches
        bounded = [c.name for c in self.table.columns if not pa.types.is_list(c.type) and c.name != "text"]
        self._writer = pq.ParquetWriter(
            self.root / file,
            self.table.schema,
            compression="zstd",
            write_statistics=bounded,
            write_page_index=True,
            sorting_columns=order,
        )
        self.shards.append(Shard(file, 0))
        return self._writer


def _key(rows: pa.Table, row: int) -> tuple[str, int]:
    return rows.column("sae_id")[row].as_py(), rows.column("feature")[row].as_py()


def _before(folder: Path, saes: Mapping[str, SAESource] | None, overwrite: bool) -> Manifest | None:
    """What the folder holds already; whether it may be written to is decided here."""
    known = is_feature_dataset(folder)
    if folder.exists() and not known and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{str(folder)!r} holds something that is no feature dataset: give a new or an empty folder.")
    if saes is None and not known:
        raise DataError(f"{str(folder)!r} holds no feature dataset to add to: say what it is about with saes=.")
    if saes is not None and not saes:
        raise DataError("saes= is empty: name at least one autoencoder, {'layer_8': SAESource.of(sae)}.")
    if saes is not None and known and not overwrite:
        raise DataError(f"{str(folder)!r} holds a feature dataset already: pass overwrite=True to replace it.")
    if saes is not None:
        return None
    from .reading import FeatureDataset

    return FeatureDataset.open(folder).manifest


def _carry_over(source: Path, target: Path, kept: set[str]) -> None:
    """Links or copies what is not replaced: the card, other tables, whatever else lies there."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        ours = name == MANIFEST or (name.startswith("data/") and name.endswith(".parquet"))
        if not path.is_file() or (ours and name not in kept):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target / name)
        except OSError:  # a file system without links
            shutil.copy2(path, target / name)
