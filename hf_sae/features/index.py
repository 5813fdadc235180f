"""`FeatureIndex`: find features by words, by what they promote, by a direction, by a prompt, by a contrast.

Parquet is the truth. The index is made from it, lies in a cache, and is made anew when the dataset is another one.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .schema import storable
from .search import file
from .search.embedders import Embedder, HashingEmbedder, WordsOnly
from .search.filters import Filters, checked_limit
from .search.hits import Hit, Reason, fuse
from .search.store import Store
from .search.terms import MAX_QUERY, Terms, plain


if TYPE_CHECKING:
    from .reading import FeatureDataset

DEPTH = 100  # features that each ranking hands to the fusion, at least
_AT_ONCE = 1000
_KINDS = {"labels": "label", "examples": "example", "promoted": "promoted token"}


class FeatureIndex:
    """Searches the features of a dataset. Any number of threads and processes may read one at the same time.

    Get one from [`FeatureIndex.open`].

    Args:
        dataset ([`FeatureDataset`]): what was indexed; contexts are read from it.
        store ([`Store`]): the index.
        embedder ([`Embedder`], *optional*): embeds queries; without one words only are searched.
        note (`str`): how meaning is searched, or why not.
    """

    def __init__(self, dataset: FeatureDataset, store: Store, embedder: Embedder | None, note: str) -> None:
        self.dataset, self.store, self.embedder, self.note = dataset, store, embedder, note

    @classmethod
    def open(
        cls,
        dataset: FeatureDataset,
        cache_dir: str | Path | None = None,
        embedder: Embedder | WordsOnly | None = None,
    ) -> Self:
        """The index of a dataset from the cache; it is made where it is not there, damaged, or of other content.

        Args:
            dataset ([`FeatureDataset`]): from [`hf_sae.load_features`].
            cache_dir (`str` or `Path`, *optional*): instead of `hf_sae/index` in the cache of Hugging Face libraries.
            embedder ([`Embedder`] or [`WordsOnly`], *optional*): has to be what made the vectors of the dataset, where it has any.
                Default: [`HashingEmbedder`] where it has none or they are by it, otherwise words only.

        Raises:
            DataError: if the vectors are by another model, the dataset is damaged, or the index cannot be written.
            OSError: if files of the dataset are not in the cache and the Hub cannot be reached.

        Example:
            ```python
            index = FeatureIndex.open(load_features("user/gpt2-sae-dashboards"))
            for hit in index.search("docstrings"):
                print(hit.sae_id, hit.feature, hit.label, hit.reasons[0])
            ```
        """
        return cls._make(dataset, cache_dir, embedder, anew=False)

    @classmethod
    def build(
        cls,
        dataset: FeatureDataset,
        cache_dir: str | Path | None = None,
        embedder: Embedder | WordsOnly | None = None,
    ) -> Self:
        """As [`FeatureIndex.open`], but the index is made anew in any case."""
        return cls._make(dataset, cache_dir, embedder, anew=True)

    @classmethod
    def _make(
        cls, dataset: FeatureDataset, cache_dir: str | Path | None, given: Embedder | WordsOnly | None, anew: bool
    ) -> Self:
        embedder, note = _chosen(dataset, given)
        key = file.content_key(dataset, None if embedder is None else embedder.model)
        folder = _cache(cache_dir) / key[:32]
        if anew or not file.is_whole(folder, key):
            file.write(dataset, folder, key, embedder)
        return cls(dataset, Store(folder), embedder, note)

    def search(self, text: str, limit: int = 20, filters: Filters | None = None) -> list[Hit]:
        """Features whose labels, strongest contexts or promoted tokens have these words, or whose labels are similar.

        Each way gives a ranking, and the rankings are fused by reciprocal rank. Quoted words are a phrase; no other character
        means anything. What is beyond the first 1,000 characters or 24 words is not looked at.

        Args:
            text (`str`): what to find.
            limit (`int`): hits, 1 to 1,000.
            filters ([`Filters`], *optional*): where to look.

        Raises:
            ConfigError: for a limit or filter that cannot be.
            DataError: if the index was damaged.
        """
        filters, depth, terms = filters or Filters(), max(DEPTH, checked_limit(limit)), Terms.of(text)
        exact = self.store.promoting(storable(text[:MAX_QUERY]), filters, depth)
        rankings = {table: self.store.matching(table, terms, filters, depth) for table in _KINDS}
        rankings["promoted"] = list(dict.fromkeys([*exact, *rankings["promoted"]]))[:depth]
        similar = self._similar(text, filters, depth)
        scores = dict(list(fuse([*rankings.values(), list(similar)]).items())[:limit])
        reasons = {number: self._reasons(number, terms, rankings, exact, similar) for number in scores}
        return self.store.hits(scores, reasons)

    def by_promoted(self, token: str, limit: int = 20, filters: Filters | None = None) -> list[Hit]:
        """Features that raise the logit of a token most: the very token first, then with other spaces or upper case.

        Only the promoted tokens that the dataset lists for each feature are known. Score: the logit per unit of activation.

        Args:
            token (`str`): its text, with its space, such as `" Paris"`.
            limit (`int`), filters ([`Filters`], *optional*): as in [`FeatureIndex.search`].
        """
        token = storable(token[:MAX_QUERY])
        found = self.store.promoting(token, filters or Filters(), checked_limit(limit))
        reasons = {
            number: [Reason(_KINDS["promoted"], text, ((0, len(text)),), logit)]
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
        found: dict[int, tuple[int, float]] = {}
        for start in range(0, len(order), _AT_ONCE):
            part = order[start : start + _AT_ONCE].tolist()
            passing = self.store.passing([int(owners[row]) for row in part], filters)
            for row in (row for row in part if int(owners[row]) in passing):
                found.setdefault(int(owners[row]), (row, float(cosines[row])))
            if len(found) >= limit:
                break
        return dict(islice(found.items(), limit))

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
        for table, kind in _KINDS.items():
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

    def close(self) -> None:
        """Closes the index."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FeatureIndex({self.dataset.name!r}, {self.dataset.manifest.rows('features'):,} features, {self.note})"


def _chosen(dataset: FeatureDataset, given: Embedder | WordsOnly | None) -> tuple[Embedder | None, str]:
    """The embedder, and in words how meaning is searched."""
    if isinstance(given, WordsOnly):
        return None, "words only, as asked"
    embedder: Any = HashingEmbedder() if given is None else given
    wanted = dataset.embedding
    foreign = wanted is not None and dataset.manifest.rows("embeddings") > 0
    if given is None and foreign and wanted is not None and wanted.model != embedder.model.model:
        return None, f"words only: the vectors are by {wanted.model!r}, which was not given as embedder="
    if given is None and foreign and wanted is not None:
        embedder = HashingEmbedder(wanted.dim)
    file.check_embedder(dataset, embedder)
    return embedder, f"words and {embedder.likeness} by {embedder.model.model}"


def _cache(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_sae" / "index"
