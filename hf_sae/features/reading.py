"""Reading a feature dataset: whole tables when they are asked for, one feature from a few row groups."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..access import explained
from ..conversion.files import Files, open_files
from ..errors import CheckpointError, DataError
from .checks import CrossChecker, TableChecker, check_features
from .footers import check_sizes, may_hold
from .manifest import MANIFEST, EmbeddingModel, Manifest, SAESource, Shard
from .record import FeatureRecord
from .schema import TABLES, Table, check_schema, table_of


if TYPE_CHECKING:
    from datasets import Dataset

    from ..models import SAE

MAX_THRIFT = 100_000_000  # of a file's footer
BATCH = 1024


class FeatureDataset:
    """A feature dataset in a folder, or on the Hub at one commit. Nothing is read before it is asked for.

    Whole tables are downloaded, and found in the cache afterwards; [`FeatureDataset.feature`] reads ranges of files that are not
    in the cache. Get one from [`hf_sae.load_features`].

    Args:
        files ([`Files`]): of the folder or repo.
        remote (`Callable`, *optional*): opens a file of the repo by its name, to read parts of it.
    """

    def __init__(self, files: Files, remote: Callable[[str], BinaryIO] | None = None) -> None:
        self.name, self.commit = files.name, None if files.root is not None and not files.commit else files.commit
        self._files, self._remote = files, remote
        self._footers: dict[str, pq.FileMetaData] = {}
        if MANIFEST not in files.names:
            raise DataError(
                f"{files.name!r} holds no {MANIFEST}: it is no feature dataset. (A dataset of another kind is opened by "
                "datasets.load_dataset, an autoencoder by AutoSAE.from_pretrained.)"
            )
        try:
            self.manifest = Manifest.from_json(files.json(MANIFEST))
        except CheckpointError as error:
            raise DataError(str(error)) from error
        for shard in (shard for name in TABLES for shard in self.manifest.shards.get(name, ())):
            if shard.file not in files.names:
                raise DataError(f"{files.name!r} lacks {shard.file!r}, which its {MANIFEST} lists.")

    @classmethod
    def open(cls, folder: str | Path) -> FeatureDataset:
        """The one in a folder.

        Raises:
            DataError: if the folder holds none, or a damaged one.
        """
        if not Path(folder).is_dir():
            raise DataError(f"there is no folder {str(folder)!r}.")
        return cls(open_files(str(folder)))

    @property
    def saes(self) -> dict[str, SAESource]:
        """The autoencoders by `sae_id`."""
        return self.manifest.saes

    @property
    def data(self) -> dict[str, Any]:
        """What text was read."""
        return self.manifest.data

    @property
    def embedding(self) -> EmbeddingModel | None:
        """What made the vectors, where there are any."""
        return self.manifest.embedding

    @cached_property
    def features(self) -> Dataset:
        """The table of latents."""
        return self._dataset("features")

    @cached_property
    def examples(self) -> Dataset:
        """The table of contexts."""
        return self._dataset("examples")

    @cached_property
    def explanations(self) -> Dataset:
        """The table of labels."""
        return self._dataset("explanations")

    @cached_property
    def embeddings(self) -> Dataset:
        """The table of vectors."""
        return self._dataset("embeddings")

    def feature(self, sae_id: str, index: int) -> FeatureRecord:
        """One feature with its contexts and labels.

        Args:
            sae_id (`str`): one of [`FeatureDataset.saes`].
            index (`int`): of the latent.

        Raises:
            KeyError: if the dataset has no such autoencoder or feature.
            DataError: if what is there is not as the schema says.
            OSError: if it is not in the cache and the Hub cannot be reached.
        """
        source = self._source(sae_id)
        if not 0 <= index < source.d_sae:
            raise KeyError(f"{sae_id!r} has features 0 to {source.d_sae - 1}, not {index}.")
        facts, examples, explanations = (
            self._rows(TABLES[name], sae_id, index) for name in ("features", "examples", "explanations")
        )
        if not facts:
            raise KeyError(f"{self.name!r} has nothing about feature {index} of {sae_id!r}.")
        note = self.data.get("logit_effects")
        note = note.get(sae_id, "") if isinstance(note, dict) else note
        return FeatureRecord(
            sae_id, index, facts[0], examples, explanations, source, note if isinstance(note, str) else ""
        )

    def batches(self, table: str) -> Iterator[pa.Table]:
        """The rows of a table in order, checked, in batches of bounded memory.

        Raises:
            DataError: at the first row that is not as the schema says, and for another name of a table.
        """
        kind = table_of(table)
        checker = TableChecker(kind, self.manifest, f"table {table!r} of {self.name!r}")
        for shard in self.manifest.shards.get(table, ()):
            before = checker.rows
            with self._parquet(shard, kind, whole=True) as file:
                for batch in file.iter_batches(batch_size=BATCH):
                    rows = pa.Table.from_batches([batch])
                    checker.check(rows)
                    yield rows
            if checker.rows - before != shard.rows:
                raise DataError(
                    f"{shard.file!r} of {self.name!r} has {checker.rows - before:,} rows, not {shard.rows:,}."
                )

    def columns(self, table: str, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of a table in order, in batches of bounded memory: fast, since the others are not even read.

        Of the rows only `sae_id` and `feature` are checked, which are always among the columns.

        Raises:
            DataError: for another name, and rows of an autoencoder or feature that the dataset does not have.
        """
        kind = table_of(table)
        for shard in self.manifest.shards.get(table, ()):
            where = f"{shard.file!r} of {self.name!r}"
            with self._parquet(shard, kind, whole=True) as file:
                for batch in file.iter_batches(
                    batch_size=BATCH, columns=list({"sae_id": 0, "feature": 0} | dict.fromkeys(names))
                ):
                    rows = pa.Table.from_batches([batch])
                    check_features(rows, self.manifest, where)
                    yield rows

    def paths(self) -> list[Path]:
        """The files of all tables on this machine, in order; those that are not in the cache are downloaded.

        Raises:
            OSError: if the Hub cannot be reached.
        """
        with explained(self.name, "dataset"):
            return [self._files.path(shard.file) for name in TABLES for shard in self.manifest.shards.get(name, ())]

    def validate(self) -> None:
        """Reads everything and checks it, and whether the tables fit each other.

        Raises:
            DataError: at the first thing that is not as the schema says, a row about a feature that `features` does not have, and a
                context that is stronger than its feature's `max_act`.
        """
        from tqdm.auto import tqdm

        total = sum(map(self.manifest.rows, TABLES))
        with tqdm(total=total, unit="row", unit_scale=True, desc="Checking", delay=2, leave=False) as bar:
            across = CrossChecker(self.manifest, self.name)
            for name in TABLES:
                for rows in self.batches(name):
                    across.check(name, rows)
                    bar.update(rows.num_rows)

    def download(self) -> None:
        """Puts every table into the cache, for use without a network.

        Raises:
            OSError: if the Hub cannot be reached.
        """
        self.paths()

    def load_sae(self, sae_id: str, **options: Any) -> SAE:
        """The autoencoder that the rows of a `sae_id` are about, at its commit.

        Args:
            sae_id (`str`): one of [`FeatureDataset.saes`].
            options: for `AutoSAE.from_pretrained`.

        Raises:
            KeyError: if the dataset has no such autoencoder.
            DataError: if the dataset does not say where it lies.
        """
        from ..models import AutoSAE

        source = self._source(sae_id)
        if source.repo_id is None:
            raise DataError(f"{self.name!r} does not say where {sae_id!r} lies: load it yourself.")
        return AutoSAE.from_pretrained(
            source.repo_id, subfolder=source.subfolder or "", revision=source.commit or "main", **options
        )

    def __repr__(self) -> str:
        at = f" at {self.commit[:8]}" if self.commit else ""
        counts = ", ".join(f"{self.manifest.rows(name):,} {name}" for name in TABLES)
        return f"FeatureDataset({self.name!r}{at}, {counts})"

    def _source(self, sae_id: str) -> SAESource:
        if sae_id not in self.saes:
            close = difflib.get_close_matches(str(sae_id), self.saes, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(map(repr, self.saes))}."
            raise KeyError(f"{self.name!r} is not about {sae_id!r}. {hint}")
        return self.saes[sae_id]

    def _dataset(self, name: str) -> Dataset:
        import datasets
        from datasets.exceptions import DatasetGenerationError

        table = TABLES[name]
        shards = self.manifest.shards.get(name, ())
        for shard in shards:
            with self._parquet(shard, table, whole=True):
                pass  # what is no table of ours is refused before anything else opens it
        if not sum(shard.rows for shard in shards):
            return datasets.Dataset(table.schema.empty_table())
        paths: list[Any] = [str(self._files.path(shard.file)) for shard in shards if shard.rows]
        try:
            return datasets.Dataset.from_parquet(paths)
        except (DatasetGenerationError, pa.ArrowException) as error:
            raise DataError(f"table {name!r} of {self.name!r} cannot be read: {error.__cause__ or error}.") from error

    def _rows(self, table: Table, sae_id: str, index: int) -> list[dict[str, Any]]:
        found: list[pa.Table] = []
        for shard in self.manifest.shards.get(table.name, ()):
            if not shard.may_hold(sae_id, index):
                continue
            with self._parquet(shard, table) as file:
                groups = [i for i in range(file.num_row_groups) if may_hold(file.metadata.row_group(i), sae_id, index)]
                for batch in file.iter_batches(batch_size=BATCH, row_groups=groups) if groups else ():
                    wanted = (pc.field("sae_id") == sae_id) & (pc.field("feature") == index)
                    found.append(pa.Table.from_batches([batch]).filter(wanted))
        checker = TableChecker(
            table, self.manifest, f"feature {index} of {sae_id!r} in table {table.name!r} of {self.name!r}"
        )
        for rows in found:
            checker.check(rows)
        return [row for rows in found for row in rows.to_pylist()]

    @contextmanager
    def _parquet(self, shard: Shard, table: Table, whole: bool = False) -> Generator[pq.ParquetFile]:
        """An open file whose schema and sizes were looked at; `whole` downloads it."""
        where = f"{shard.file!r} of {self.name!r}"
        limits = {"thrift_string_size_limit": MAX_THRIFT, "thrift_container_size_limit": MAX_THRIFT}
        with explained(self.name, "dataset"), self._open(shard.file, whole) as source:
            try:
                footer = self._footers.get(shard.file)
                with pq.ParquetFile(source, metadata=footer, pre_buffer=True, **limits) as file:
                    if footer is None:
                        check_schema(table, file.schema_arrow, where)
                        check_sizes(file.metadata, where)
                        self._footers[shard.file] = file.metadata
                    yield file
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise DataError(f"{where} is no Parquet file, or damaged: {error}.") from error
            except OSError as error:
                if type(error) is not OSError:  # of the network or the disk; Arrow's own are plain ones
                    raise
                raise DataError(f"{where} is no Parquet file, or damaged: {error}.") from error

    def _open(self, file: str, whole: bool) -> BinaryIO:
        if not whole and self._remote is not None:
            return self._remote(file)
        return self._files.path(file).open("rb")
