"""A word that nearly every label has: the order is that of BM25 as the formula says, by whichever way it is found."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from hf_sae.features.index import FeatureIndex
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.search import file
from hf_sae.features.search.embedders import WordsOnly
from hf_sae.features.search.filters import Filters
from hf_sae.features.search.terms import Terms
from hf_sae.features.writing import FeatureWriter
from tests.features.toy_features import SAES, explanation, feature


def labels() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(["ba", "du", "ki", "lo"], [6, 3, 1, 1], k=rng.randrange(1, 9))) for _ in range(128)]


def by_formula(texts: list[str], word: str) -> list[int]:
    """BM25 as SQLite states it (k1 = 1.2, b = 0.75, an inverse document frequency of at least 1e-6), then by number."""
    split = [text.split() for text in texts]
    mean, having = sum(map(len, split)) / len(split), sum(word in words for words in split)
    weight = max(math.log((len(split) - having + 0.5) / (having + 0.5)), 1e-6)
    scores = {}
    for number, words in enumerate(split):
        count = words.count(word)
        norm = count + 1.2 * (1 - 0.75 + 0.75 * len(words) / mean)
        if count:
            scores[number] = weight * count * 2.2 / norm
    return sorted(scores, key=lambda number: (-round(scores[number], 15), number))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(file, "FEWEST", 5)
    with FeatureWriter(tmp_path / "d", SAES) as writer:
        writer.append("features", [feature("layer_2", i, density=i / 1000) for i in range(128)])
        writer.append("explanations", [explanation("layer_2", i, text=text) for i, text in enumerate(labels())])

    def made(listed: int) -> FeatureIndex:
        monkeypatch.setattr(file, "LISTED", listed)
        return FeatureIndex.build(FeatureDataset.open(tmp_path / "d"), tmp_path / f"c{listed}", WordsOnly())

    return made


@pytest.mark.parametrize("word", ["ba", "du", "ki"])
def test_the_first_twenty_are_those_of_the_formula(make: Any, word: str):
    expected = by_formula(labels(), word)
    assert len(expected) > 25
    for listed in (5, 10**6):
        with make(listed) as index:
            kept = index.store.rows("SELECT count(*) FROM best WHERE term = ?", [word])[0][0]
            assert kept == (len(expected) if listed == 5 else 0)
            assert [hit.feature for hit in index.search(word)] == expected[:20]
            some = Filters(max_density=0.05)
            assert [h.feature for h in index.search(word, filters=some)] == [n for n in expected if n <= 50][:20]


def test_a_short_list_is_not_taken_for_the_whole(make: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "BEST", 10)
    expected = by_formula(labels(), "ba")
    with make(5) as index:
        assert index.store.matching("labels", Terms(("ba",)), Filters(), 10) == [64 + n for n in expected[:10]]
        assert [hit.feature for hit in index.search("ba")] == expected[:20]
        rare = Filters(min_density=0.1)
        assert [h.feature for h in index.search("ba", filters=rare)] == [n for n in expected if n >= 100][:20]
