"""Search by words: rankings by label, context, promoted token and similar label, fused."""

from __future__ import annotations

import numpy as np

from ..schema import storable
from .embedders import Embedder
from .filters import Filters
from .hits import Hits, Reason, fuse
from .store import Store
from .terms import MAX_QUERY, Terms, plain


DEPTH = 100  # features that each ranking hands to the fusion, at least
KINDS = {"labels": "label", "examples": "example", "promoted": "promoted token"}


class Words:
    """Finds features by words.

    Args:
        store ([`Store`]): the index.
        embedder ([`Embedder`], *optional*): of queries.
    """

    def __init__(self, store: Store, embedder: Embedder | None) -> None:
        self.store, self.embedder = store, embedder

    def search(self, text: str, limit: int, filters: Filters) -> Hits:
        """Features with these words, or similar labels."""
        depth, terms = max(DEPTH, limit), Terms.of(text)
        exact = self.store.promoting(storable(text[:MAX_QUERY]), filters, depth)
        rankings = {table: self.store.matching(table, terms, filters, depth) for table in KINDS}
        rankings["promoted"] = list(dict.fromkeys([*exact, *rankings["promoted"]]))[:depth]
        similar = self._similar(text, filters, depth)
        scores = dict(list(fuse([*rankings.values(), list(similar)]).items())[:limit])
        reasons = {number: self._reasons(number, terms, rankings, exact, similar) for number in scores}
        return self.store.hits(scores, reasons)

    def by_promoted(self, token: str, limit: int, filters: Filters) -> Hits:
        """Features that promote a token, by its logit."""
        found = self.store.promoting(storable(token[:MAX_QUERY]), filters, limit)
        reasons = {
            number: [Reason(KINDS["promoted"], text, ((0, len(text)),), logit)]
            for number, (text, logit) in found.items()
        }
        return self.store.hits({number: logit for number, (_, logit) in found.items()}, reasons)

    def _similar(self, text: str, filters: Filters, limit: int) -> dict[int, tuple[int, float]]:
        """Features with a text similar to the query: which row of the vectors, and its cosine; best first."""
        vectors, owners = self.store.vectors, self.store.owners
        if self.embedder is None or not len(vectors):
            return {}
        cosines = vectors @ self.embedder.embed([plain(text)])[0]
        rows = np.flatnonzero(cosines >= self.embedder.floor)
        order = rows[np.lexsort((rows, -cosines[rows]))]
        best: dict[int, int] = {}
        for row in order.tolist():
            best.setdefault(int(owners[row]), row)
        chosen = self.store.first(list(best), filters, limit)
        return {number: (best[number], float(cosines[best[number]])) for number in chosen}

    def _reasons(
        self,
        number: int,
        terms: Terms,
        rankings: dict[str, list[int]],
        exact: dict[int, tuple[str, float]],
        similar: dict[int, tuple[int, float]],
    ) -> list[Reason]:
        """Why a feature matched, the ranking in which it stands highest first."""
        found: list[tuple[int, Reason]] = []
        for table, kind in KINDS.items():
            if number not in rankings[table]:
                continue
            rank = rankings[table].index(number)
            if table == "promoted" and number in exact:
                token, logit = exact[number]
                found.append((rank, Reason(kind, token, ((0, len(token)),), logit)))
            else:
                found.append((rank, Reason(kind, *self.store.snippet(table, terms, number))))
        if self.embedder is not None and number in similar:
            row, cosine = similar[number]
            text = self.store.rows("SELECT text FROM embedded WHERE row = ?", [row])
            reason = Reason(self.embedder.likeness, text[0][0] if text else "", (), cosine)
            found.append((list(similar).index(number), reason))
        return [reason for _, reason in sorted(found, key=lambda pair: pair[0])]
