"""The rows of a feature dataset as rows of the index, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from .scripts import JOINT


if TYPE_CHECKING:
    from ..reading import FeatureDataset

WINDOWS = 5  # strongest contexts of a feature that are searched
MAX_CONTEXT = 1000  # characters of one
MAX_LABELS = 32  # of one feature
MAX_PROMOTED = 64  # tokens of one feature
OPEN, CLOSE, BETWEEN = "\x02", "\x03", " \ue000 "  # around a hit, and between two texts: a word that no phrase crosses
_MARKS = str.maketrans({"\x00": " ", OPEN: " ", CLOSE: " ", JOINT: " ", "\ue000": " "})


class Numbering:
    """One number for each feature of a dataset: those of the first autoencoder, then those of the second, …

    Args:
        dataset ([`FeatureDataset`]): which.
    """

    def __init__(self, dataset: FeatureDataset) -> None:
        self.sae = {name: number for number, name in enumerate(sorted(dataset.saes))}
        self.start: dict[str, int] = {}
        total = 0
        for name in self.sae:
            self.start[name] = total
            total += dataset.saes[name].d_sae
        self.total = total


def labels(dataset: FeatureDataset, numbering: Numbering) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Number and labels of each feature that has any."""
    for number, rows in _grouped(dataset, numbering, "explanations", ["text", "method", "score"]):
        yield number, [row | {"text": clean(row["text"])[:MAX_CONTEXT]} for row in rows[:MAX_LABELS]]


def contexts(dataset: FeatureDataset, numbering: Numbering) -> Iterator[tuple[int, str]]:
    """Number and strongest contexts of each feature, as one text."""
    for number, rows in _grouped(dataset, numbering, "examples", ["kind", "rank", "text"], top=True):
        chosen = sorted(rows, key=lambda row: row["rank"] or 0)[:WINDOWS]
        yield number, BETWEEN.join(clean(row["text"])[:MAX_CONTEXT] for row in chosen)


def features(dataset: FeatureDataset, numbering: Numbering) -> Iterator[dict[str, Any]]:
    """Facts of each feature with its `number`."""
    for number, rows in _grouped(
        dataset, numbering, "features", ["density", "max_act", "pos_tokens", "pos_logits", "text"]
    ):
        row = rows[0]
        row["text"] = clean(row["text"])[:MAX_CONTEXT]
        row["pos_tokens"] = [clean(token)[:MAX_CONTEXT] for token in (row["pos_tokens"] or ())[:MAX_PROMOTED]]
        yield row | {"number": number}


def clean(text: str | None) -> str:
    """Text without the characters that the index keeps for itself."""
    return (text or "").translate(_MARKS)


def folded(token: str) -> str:
    """A token without the space around it, in lower case; white space alone stays as it is."""
    return token.strip().casefold() or token


def _grouped(
    dataset: FeatureDataset, numbering: Numbering, table: str, names: list[str], top: bool = False
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    def rows() -> Iterable[dict[str, Any]]:
        for batch in dataset.columns(table, names):
            chosen = batch.filter(pc.field("kind") == "top") if top else batch
            yield from chosen.to_pylist()

    for (sae_id, feature), group in groupby(rows(), key=lambda row: (row["sae_id"], row["feature"])):
        yield numbering.start[sae_id] + feature, list(group)
