"""Labels into a feature dataset: what was there stays, and the folder is the old one or the new one, never half of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..reading import FeatureDataset
from ..search.embedders import Embedder, HashingEmbedder, same_model
from ..writing import FeatureWriter
from .detection import CHANCE
from .labels import Labeller
from .latents import Key
from .report import Explained


SOURCE = "explanation"  # what the vectors of labels are called in `embeddings`
_ROWS_AT_ONCE = 4096
Row = dict[str, Any]


class LabelStore:
    """The labels of a feature dataset in a folder.

    Args:
        folder (`str` or `Path`): of the dataset.
        labeller ([`Labeller`]): whose labels are added.
        embedder ([`Embedder`], *optional*): makes vectors of labels; has to be what made those that are there. Default:
            [`HashingEmbedder`].

    Raises:
        DataError: if vectors by another model are there.
    """

    def __init__(self, folder: str | Path, labeller: Labeller, embedder: Embedder | None = None) -> None:
        self.folder, self.labeller = Path(folder), labeller
        self.dataset = FeatureDataset.open(self.folder)
        self.embedder: Any = embedder_for(self.dataset, embedder)
        self.labels = [row for rows in self.dataset.batches("explanations") for row in rows.to_pylist()]
        self._replaced: set[Key] = set()

    def known(self) -> set[Key]:
        """Latents that have a label of this labeller."""
        return {_key(row) for row in self.labels if self._own(row)}

    def replace(self, latents: Collection[Key]) -> None:
        """Labels of this labeller that these have go away when they get a new one."""
        self._replaced = set(latents)

    def add(self, explained: Iterable[Explained]) -> None:
        """Writes labels to the folder, all of them or none.

        Raises:
            DataError: if the folder cannot be written to.
        """
        found = {(one.sae_id, one.feature): one for one in explained}
        gone = self._replaced & found.keys()
        kept = [row for row in self.labels if not (_key(row) in gone and self._own(row))]
        numbers: dict[Key, int] = {}
        for row in kept:
            numbers[_key(row)] = max(numbers.get(_key(row), -1), row["number"])
        new = [self._row(one, numbers.get(key, -1) + 1) for key, one in found.items()]
        rows = sorted([*kept, *new], key=lambda row: (*_key(row), row["number"]))
        vectors = self._vectors(rows)
        with FeatureWriter(self.folder, embedding=self.embedder.model) as writer:
            for table, values in (("explanations", rows), ("embeddings", vectors)):
                for start in range(0, max(len(values), 1), _ROWS_AT_ONCE):
                    writer.append(table, values[start : start + _ROWS_AT_ONCE])
        self.labels, self._replaced = rows, self._replaced - gone
        self.dataset = FeatureDataset.open(self.folder)

    def _own(self, row: Row) -> bool:
        return (row["method"], row["model"]) == (self.labeller.method, self.labeller.model)

    def _row(self, one: Explained, number: int) -> Row:
        found = one.detection
        return {
            "sae_id": one.sae_id,
            "feature": one.feature,
            "number": number,
            "text": one.text,
            "method": self.labeller.method,
            "model": self.labeller.model,
            "model_revision": self.labeller.revision,
            "prompt": self.labeller.prompt,
            "score": found.score,
            "score_method": found.method,
            "score_chance": None if found.score is None else CHANCE,
            "score_low": found.low,
            "score_high": found.high,
            "score_count": found.firing + found.silent,
            "score_failed": found.failed,
            "counterexamples": list(found.counterexamples),
            "created": datetime.now(UTC),
        }

    def _vectors(self, labels: list[Row]) -> list[Row]:
        """Those that are there, without the ones of labels that are gone, and new ones for labels that have none."""
        there = [row for rows in self.dataset.batches("embeddings") for row in rows.to_pylist()]
        texts = {(*_key(row), row["number"]): row["text"] for row in labels}
        kept = {
            (*_key(row), row["source"], row["number"]): row
            for row in there
            if row["source"] != SOURCE or texts.get((*_key(row), row["number"])) == row["text"]
        }
        new = [key for key in texts if (*key[:2], SOURCE, key[2]) not in kept and texts[key].strip()]
        for start in range(0, len(new), _ROWS_AT_ONCE):
            keys = new[start : start + _ROWS_AT_ONCE]
            vectors = self.embedder.embed([texts[key] for key in keys])
            for (sae_id, feature, number), vector in zip(keys, vectors, strict=True):
                row = {"sae_id": sae_id, "feature": feature, "source": SOURCE, "number": number}
                kept[sae_id, feature, SOURCE, number] = row | {
                    "text": texts[sae_id, feature, number],
                    "vector": vector,
                }
        return [kept[key] for key in sorted(kept)]


def embedder_for(dataset: FeatureDataset, given: Embedder | None) -> Embedder:
    """The embedder of new labels.

    Raises:
        DataError: if vectors by another model are there.
    """
    wanted = dataset.embedding if dataset.manifest.rows("embeddings") else None
    if wanted is None:
        return given or HashingEmbedder()
    if given is None and wanted.model == HashingEmbedder().model.model:
        return HashingEmbedder(wanted.dim)
    if given is None or not same_model(given.model, wanted):
        other = (
            "none was given" if given is None else f"embedder= is {given.model.model!r} ({given.model.dim} numbers)"
        )
        raise DataError(
            f"the vectors of {dataset.name!r} are by {wanted.model!r} ({wanted.dim} numbers), and {other}: pass that model as "
            "embedder=, so that new labels can be compared with the others."
        )
    return given


def _key(row: Row) -> Key:
    return row["sae_id"], row["feature"]
