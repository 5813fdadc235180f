"""Reading an index file: full-text rankings, exact tokens, facts; by any number of threads and processes at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.request import pathname2url

import numpy as np

from ...errors import DataError
from .cache import hold
from .file import DATABASE, OWNERS, STAMP, VECTORS
from .filters import Filters
from .hits import Hit, Hits, Reason
from .rows import CLOSE, OPEN, folded
from .scripts import joined
from .terms import Terms


_SNIPPET_WORDS, _AT_ONCE = 24, 1000
BUDGET = 20_000  # features that are ranked by frequent words, about 0.1 s


class Store:
    """An index in a folder, read-only.

    Args:
        folder (`Path`): a whole one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used = hold(folder / STAMP)
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        saes = self.rows("SELECT sae_id, sae, layer, first FROM saes ORDER BY sae")
        self.sae: dict[str, int] = {name: number for name, number, _, _ in saes}
        self.layers: dict[str, int | None] = {name: layer for name, _, layer, _ in saes}
        self.start: dict[str, int] = {name: first for name, _, _, first in saes}
        self.frequent: dict[str, dict[str, int]] = {}
        for table, term, docs in self.rows("SELECT table_name, term, docs FROM frequent"):
            self.frequent.setdefault(table, {})[term] = docs
        self._names = {number: name for name, number in self.sae.items()}
        self.vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        self.owners = np.load(folder / OWNERS, allow_pickle=False)

    def close(self) -> None:
        """Closes the file in all threads."""
        with self._lock:
            self._used.close()
            for connection in self._open:
                connection.close()
            self._open = []
            self._local = threading.local()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            DataError: if the file is damaged or gone.
        """
        try:
            return self._connection().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(
                f"the search index in {str(self.folder)!r} cannot be read: {error}. Build it anew."
            ) from error

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            # immutable: the file never changes, so that no lock is taken and no journal looked for
            place = f"file:{pathname2url(str((self.folder / DATABASE).absolute()))}?mode=ro&immutable=1"
            self._local.connection = sqlite3.connect(place, uri=True, check_same_thread=False)
            with self._lock:
                self._open.append(self._local.connection)
        return self._local.connection

    def condition(self, filters: Filters) -> tuple[str, list[Any]]:
        """An SQL condition on `features`, with its parameters."""
        return filters.condition(self.sae, self.layers)

    def matching(self, table: str, terms: Terms, filters: Filters, limit: int) -> list[int]:
        """Features whose text has the terms, best first by BM25: those with all of them before those with some.

        Words that more than 20,000 features have tell little apart and are left out; of a label the rarest stays in any case.
        """
        terms = terms.within(self.frequent.get(table, {}), BUDGET, least=int(table == "labels"))
        found = self._best(terms, filters, limit) if table == "labels" else []
        if len(found) >= limit:
            return found
        found = []
        condition, values = self.condition(filters)
        # CROSS JOIN: the full-text table decides what is looked at, the filter is applied to it
        joined = "" if condition == "1" else f"CROSS JOIN features ON features.id = {table}.rowid"
        for expression in dict.fromkeys((terms.all, terms.any)) if terms.terms else ():
            query = (
                f"SELECT {table}.rowid FROM {table} {joined} WHERE {table} MATCH ? AND {condition} "
                f"ORDER BY bm25({table}), {table}.rowid LIMIT ?"
            )
            ids = [number for (number,) in self.rows(query, [expression, *values, limit])]
            found += [number for number in ids if number not in set(found)]
            if len(found) >= limit:
                break
        return found[:limit]

    def _best(self, terms: Terms, filters: Filters, limit: int) -> list[int]:
        """The first features by a frequent word of labels, in the order that was kept; fewer where the filter leaves few."""
        if (
            len(terms.terms) != 1
            or len(stems := terms.stems()[0]) != 1
            or stems[0] not in self.frequent.get("labels", {})
        ):
            return []
        rows = self.rows("SELECT id FROM best WHERE term = ? ORDER BY place", stems)
        return self.first([number for (number,) in rows], filters, limit)

    def promoting(self, token: str, filters: Filters, limit: int) -> dict[int, tuple[str, float]]:
        """Features that promote a token, and by how much: the token itself first, then other spaces and upper case."""
        condition, values = self.condition(filters)
        joined = "" if condition == "1" else "CROSS JOIN features ON features.id = tokens.id"
        found: dict[int, tuple[str, float]] = {}
        # a token is searched for as it is in one index; where it fills the list, the others need not be gone through
        for sign, index in (("=", "by_spelling"), ("<>", "by_token")):
            if len(found) >= limit:
                break
            # in the order of an index, so that only what is wanted is read; a feature may list " Paris" and "paris"
            rows = self.rows(
                f"SELECT tokens.id, token, logit FROM tokens INDEXED BY {index} {joined} WHERE folded = ? AND token {sign} ? AND {condition} "
                "ORDER BY logit DESC, tokens.id LIMIT ?",
                [folded(token), token, *values, 4 * limit],
            )
            for number, text, logit in rows:
                found.setdefault(number, (text, logit))
        return dict(islice(found.items(), limit))

    def snippet(self, table: str, terms: Terms, number: int) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The part of a feature's text with the most terms, and where they stand in it."""
        query = f"SELECT snippet({table}, 0, ?, ?, '…', ?) FROM {table} WHERE {table} MATCH ? AND rowid = ?"
        rows = self.rows(query, [OPEN, CLOSE, _SNIPPET_WORDS, terms.any, number])
        parts = (rows[0][0] if rows else "").split("\ue000")
        return _marked(max(parts, key=lambda part: part.count(OPEN)).strip(" "))

    def first(self, numbers: Sequence[int], filters: Filters, limit: int) -> list[int]:
        """The first of some features that are in the index and pass the filters."""
        condition, values = self.condition(filters)
        found: list[int] = []
        for start in range(0, len(numbers), _AT_ONCE):
            part = list(numbers[start : start + _AT_ONCE])
            marks = ", ".join("?" * len(part))
            rows = self.rows(f"SELECT id FROM features WHERE id IN ({marks}) AND {condition}", [*part, *values])
            passing = {number for (number,) in rows}
            found += [number for number in part if number in passing]
            if len(found) >= limit:
                break
        return found[:limit]

    def facts(self, sae_id: str, d_sae: int) -> tuple[np.ndarray, np.ndarray]:
        """Density and strongest activation of each latent, `[d_sae]`; 0 for those that are not in the index."""
        out = np.zeros((2, d_sae))
        query = "SELECT feature, density, max_act FROM features WHERE sae = ?"
        for feature, density, max_act in self.rows(query, [self.sae[sae_id]]):
            out[:, feature] = density, max_act
        return out[0], out[1]

    def hits(self, scores: dict[int, float], reasons: dict[int, list[Reason]]) -> Hits:
        """Scored features with what is known of them, in the order of `scores`."""
        marks = ", ".join("?" * len(scores))
        rows = self.rows(
            f"SELECT id, sae, feature, label, method, score, density, max_act FROM features WHERE id IN ({marks})",
            list(scores),
        )
        facts = {row[0]: row[1:] for row in rows}
        return Hits(
            Hit(self._names[sae], feature, scores[number], tuple(reasons.get(number, ())), *other)
            for number in scores
            if number in facts
            for sae, feature, *other in [facts[number]]
        )


def _marked(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Text without marks, and where they were."""
    out, spans = "", []
    for place, part in enumerate(joined(text).split(OPEN)):
        inside, closed, rest = part.partition(CLOSE)
        if place and closed:
            spans.append((len(out), len(out) + len(inside)))
        out += inside + rest
    return out, tuple(spans)
