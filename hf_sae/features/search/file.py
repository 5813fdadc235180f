"""The index file: SQLite with full-text tables and a matrix of vectors, derived from a dataset and never changed.

An index is a folder of two files and a stamp. It is made beside its place and moved there when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ...errors import DataError
from ..manifest import EmbeddingModel
from ..schema import TABLES
from ..schema import VERSION as SCHEMA_VERSION
from .embedders import Embedder, same_model, unit
from .filters import layer_of
from .rows import BETWEEN, MAX_CONTEXT, Numbering, clean, contexts, features, folded, labels
from .scripts import cut
from .terms import TOKENIZE, Terms


if TYPE_CHECKING:
    from ..reading import FeatureDataset

VERSION = 2
DATABASE, VECTORS, OWNERS, STAMP = "index.sqlite", "vectors.npy", "owners.npy", "stamp.json"
_EMBEDDED_AT_ONCE = 1024
FEWEST = 1000  # features that have a word whose number of features is kept
LISTED, BEST = 5000, 1000  # features that have a word of labels whose best ones are kept, and how many of them
_TABLES = """
CREATE TABLE saes (sae INTEGER PRIMARY KEY, sae_id TEXT NOT NULL, layer INTEGER, first INTEGER NOT NULL);
CREATE TABLE features (
    id INTEGER PRIMARY KEY, sae INTEGER NOT NULL, feature INTEGER NOT NULL, density REAL NOT NULL, max_act REAL NOT NULL,
    label TEXT, method TEXT, score REAL
);
CREATE TABLE embedded (row INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE tokens (folded TEXT NOT NULL, token TEXT NOT NULL, id INTEGER NOT NULL, logit REAL NOT NULL);
CREATE TABLE best (term TEXT NOT NULL, place INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (term, place)) WITHOUT ROWID;
CREATE TABLE frequent (table_name TEXT NOT NULL, term TEXT NOT NULL, docs INTEGER NOT NULL);
""" + "".join(
    f"CREATE VIRTUAL TABLE {name} USING fts5(text, tokenize = '{TOKENIZE}');\n"
    for name in ("labels", "examples", "promoted")
)
# what a word costs to look for grows with the number of features that have it
_FREQUENT = """
CREATE VIRTUAL TABLE vocabulary USING fts5vocab({table}, row);
INSERT INTO frequent SELECT '{table}', term, doc FROM vocabulary WHERE doc > {fewest};
DROP TABLE vocabulary;
"""
_INDEXES = """
CREATE INDEX by_sae ON features (sae, feature);
CREATE INDEX by_density ON features (density);
CREATE INDEX by_score ON features (score);
CREATE INDEX by_token ON tokens (folded, logit DESC, id);
CREATE INDEX by_spelling ON tokens (folded, token, logit DESC, id);
"""
_TEXTS = ("labels", "examples", "promoted")


def content_key(dataset: FeatureDataset, embedding: EmbeddingModel | None) -> str:
    """A hash of all that an index is made of: its own version, the rows of the dataset, and what makes the vectors.

    A commit of the Hub stands for its rows; those of a folder are hashed byte by byte.
    """
    facts = [VERSION, SCHEMA_VERSION, dataset.name if dataset.commit else None, dataset.commit]
    model = None if embedding is None else [embedding.model, embedding.dim, embedding.revision]
    sums = [] if dataset.commit else [_sha256(path) for path in dataset.paths()]
    text = json.dumps([*facts, dataset.manifest.to_json(), model, sums])
    return hashlib.sha256(text.encode()).hexdigest()


def is_whole(folder: Path, key: str) -> bool:
    """Whether a folder holds the index of that content: its stamp says so and its files have the sizes that it says."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in (DATABASE, VECTORS, OWNERS)}
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and stamp.get("key") == key and stamp.get("sizes") == sizes


def write(dataset: FeatureDataset, folder: Path, key: str, embedder: Embedder | None, anew: bool = False) -> None:
    """Makes the index of a dataset, in place of what is there; whole or not at all.

    If another process was faster, its index stays (it has the same content), unless `anew`.

    Raises:
        DataError: if it cannot be written, or rows of the dataset are not as the schema says.
    """
    place = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        new = place / "new"
        new.mkdir()
        _write(dataset, new, embedder)
        sizes = {name: (new / name).stat().st_size for name in (DATABASE, VECTORS, OWNERS)}
        stamp = {"key": key, "version": VERSION, "schema": SCHEMA_VERSION, "dataset": dataset.name, "sizes": sizes}
        (new / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        if not anew and is_whole(folder, key):
            return
        if folder.exists():
            folder.rename(place / "old")
        try:
            new.rename(folder)
        except OSError:  # another process was faster after all
            if not is_whole(folder, key):
                raise
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"could not write the search index to {str(folder)!r}: {error}. Free space, or choose another cache_dir=."
        ) from error
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _write(dataset: FeatureDataset, folder: Path, embedder: Embedder | None) -> None:
    numbering = Numbering(dataset)
    total = sum(dataset.manifest.rows(name) > 0 for name in TABLES)
    with (
        tqdm(total=total, desc="Indexing", unit="table", delay=2, leave=False) as bar,
        closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as database,
    ):
        # nobody else sees the file before it is whole
        database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;")
        database.executescript(_TABLES)
        for name in _TEXTS:  # fewer and larger segments while writing
            database.execute(f"INSERT INTO {name} ({name}, rank) VALUES ('hashsize', 16777216)")
        database.execute("BEGIN")
        _fill(database, dataset, numbering, bar)
        for name in _TEXTS:
            database.execute(f"INSERT INTO {name} ({name}) VALUES ('optimize')")
        database.executescript(_INDEXES)
        for table in _TEXTS:
            database.executescript(_FREQUENT.format(table=table, fewest=FEWEST))
        _rank_frequent(database)
        np.save(folder / OWNERS, _vectors(database, dataset, numbering, embedder, folder / VECTORS))


def _fill(database: sqlite3.Connection, dataset: FeatureDataset, numbering: Numbering, bar: Any) -> None:
    saes = [
        (number, name, layer_of(dataset.saes[name].hook_in), numbering.start[name])
        for name, number in numbering.sae.items()
    ]
    database.executemany("INSERT INTO saes VALUES (?, ?, ?, ?)", saes)
    known = np.zeros(numbering.total, dtype=bool)  # a context or label of a feature without facts is not searched
    for row in features(dataset, numbering):
        number = row["number"]
        known[number] = True
        facts = (number, numbering.sae[row["sae_id"]], row["feature"], row["density"] or 0.0, row["max_act"] or 0.0)
        database.execute("INSERT OR IGNORE INTO features VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL)", facts)
        database.execute("INSERT INTO promoted (rowid, text) VALUES (?, ?)", (number, cut(row["text"])))
        pairs = zip(row["pos_tokens"], row["pos_logits"] or (), strict=False)
        values = ((folded(token), token, number, logit) for token, logit in pairs)
        database.executemany("INSERT INTO tokens VALUES (?, ?, ?, ?)", values)
    bar.update()
    texts = ((number, cut(text)) for number, text in contexts(dataset, numbering) if known[number])
    database.executemany("INSERT INTO examples (rowid, text) VALUES (?, ?)", texts)
    bar.update()
    for number, found in ((number, found) for number, found in labels(dataset, numbering) if known[number]):
        # a label without a score comes after every one that has it
        best = max(found, key=lambda label: -1.0 if label["score"] is None else label["score"])
        change = "UPDATE features SET label = ?, method = ?, score = ? WHERE id = ?"
        database.execute(change, (best["text"], best["method"], best["score"], number))
        text = BETWEEN.join(label["text"] for label in found)
        database.execute("INSERT INTO labels (rowid, text) VALUES (?, ?)", (number, cut(text)))
    bar.update()


def _rank_frequent(database: sqlite3.Connection) -> None:
    """Keeps the order in which a search for one frequent word of labels finds them: ranking all of them takes long."""
    query = "SELECT term FROM frequent WHERE table_name = 'labels' AND docs > ?"
    for (term,) in database.execute(query, [LISTED]).fetchall():
        # the word may be cut to a stem once more where it is looked for: such a word is ranked when it is asked for
        if Terms((term,)).stems() != [[term]]:
            continue
        database.execute(
            "INSERT INTO best SELECT ?, row_number() OVER () - 1, rowid FROM (SELECT rowid FROM labels WHERE labels MATCH ? "
            "ORDER BY bm25(labels), rowid LIMIT ?)",
            [term, Terms((term,)).all, BEST],
        )


Part = tuple[np.ndarray, list[int], list[str]]  # vectors, number of the feature of each, and the texts


def _vectors(
    database: sqlite3.Connection, dataset: FeatureDataset, numbering: Numbering, embedder: Embedder | None, path: Path
) -> np.ndarray:
    """Writes vectors `[n, dim]` of length 1 and their texts; the number of the feature of each, `[n]`."""
    dim = 1 if embedder is None else embedder.model.dim
    vectors, owners = [np.zeros((0, dim), dtype=np.float32)], []
    for part, numbers, texts in _parts(dataset, numbering, embedder):
        database.executemany("INSERT INTO embedded VALUES (?, ?)", enumerate(texts, start=len(owners)))
        vectors.append(part)
        owners += numbers
    np.save(path, np.concatenate(vectors))
    return np.array(owners, dtype=np.int64)


def _parts(dataset: FeatureDataset, numbering: Numbering, embedder: Embedder | None) -> Iterator[Part]:
    if embedder is None:
        return
    if dataset.embedding is not None and dataset.manifest.rows("embeddings"):
        yield from _own(dataset, numbering)
        return
    numbers: list[int] = []
    texts: list[str] = []
    for number, found in labels(dataset, numbering):
        numbers += [number] * len(found)
        texts += [label["text"] for label in found]
        if len(texts) >= _EMBEDDED_AT_ONCE:
            yield embedder.embed(texts), numbers, texts
            numbers, texts = [], []
    if texts:
        yield embedder.embed(texts), numbers, texts


def _own(dataset: FeatureDataset, numbering: Numbering) -> Iterator[Part]:
    for rows in dataset.batches("embeddings"):
        names, indices, texts = (rows.column(name).to_pylist() for name in ("sae_id", "feature", "text"))
        flat = rows.column("vector").combine_chunks().flatten().to_numpy()
        vectors = flat.reshape(rows.num_rows, -1).astype(np.float32)
        numbers = [numbering.start[name] + index for name, index in zip(names, indices, strict=True)]
        yield unit(vectors), numbers, [clean(text)[:MAX_CONTEXT] for text in texts]


def check_embedder(dataset: FeatureDataset, embedder: Embedder) -> None:
    """Whether queries embedded by it can be compared with the vectors of a dataset.

    Raises:
        DataError: if another model made them.
    """
    wanted = dataset.embedding
    if wanted is not None and dataset.manifest.rows("embeddings") and not same_model(embedder.model, wanted):
        given = embedder.model
        raise DataError(
            f"the vectors of {dataset.name!r} are by {wanted.model!r} ({wanted.dim} numbers), and embedder= is {given.model!r} "
            f"({given.dim}): they cannot be compared. Pass that model, or embedder=WordsOnly() to search words only."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
