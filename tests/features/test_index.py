"""The search index: planted features come first and say why; nothing typed is syntax; the cache is whole, or made anew."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_sae.errors import ConfigError, DataError
from hf_sae.features.index import FeatureIndex
from hf_sae.features.manifest import EmbeddingModel
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.search import file, store
from hf_sae.features.search.embedders import HashingEmbedder, SentenceEmbedder, StaticEmbedder, WordsOnly, same_model
from hf_sae.features.search.filters import Filters, layer_of
from hf_sae.features.search.hits import fuse
from hf_sae.features.search.terms import Terms
from hf_sae.features.writing import FeatureWriter
from tests.features.toy_features import SAES, Row, embedding, example, explanation, feature
from tests.forks import Fork


# per feature of layer_1: label, contexts, promoted tokens
PLANTED = {
    0: ("docstrings of functions", [' """Returns the number'], [" the", " Paris"]),
    1: ("opening brackets", ["def f(x", "a docstring here"], ["(", " Lyon"]),
    2: (None, ["the docstring", "quick brown fox jumps"], [" Paris", " Rome"]),
    3: ("names of cities", ["in Rome and Paris"], [" docstring", "paris"]),
}


def rows(labels: dict[int, str | None] | None = None) -> dict[str, list[Row]]:
    given = {i: label for i, (label, _, _) in PLANTED.items()} | (labels or {})
    out: dict[str, list[Row]] = {"features": [], "examples": [], "explanations": []}
    for i, (_, contexts, tokens) in PLANTED.items():
        logits = {
            "pos_tokens": tokens,
            "pos_token_ids": [0] * len(tokens),
            "pos_logits": [1.0 + i, 0.5][: len(tokens)],
        }
        out["features"].append(feature(index=i, text="".join(tokens), density=10.0 ** -(i + 1), **logits))
        out["examples"] += [example(index=i, rank=rank, text=text) for rank, text in enumerate(contexts)]
        out["examples"].append(example(index=i, kind="zero", text="zebra"))
        if given[i] is not None:
            out["explanations"].append(explanation(index=i, text=given[i], score=0.5 + i / 8))
    out["features"].append(
        feature("layer_2", 3, text=" sea", pos_tokens=[" sea"], pos_token_ids=[1], pos_logits=[9.0])
    )
    out["explanations"].append(explanation("layer_2", 3, text="docstrings", score=None))
    return out


def dataset(folder: Path, given: dict[str, list[Row]] | None = None, **options: Any) -> FeatureDataset:
    with FeatureWriter(folder, SAES, **options) as writer:
        for name, values in (given or rows()).items():
            writer.append(name, values)
    return FeatureDataset.open(folder)


@pytest.fixture
def index(tmp_path: Path) -> FeatureIndex:
    return FeatureIndex.open(dataset(tmp_path / "d"), tmp_path / "cache")


def found(hits: list[Any]) -> list[tuple[str, int]]:
    return [(hit.sae_id, hit.feature) for hit in hits]


def test_planted_features_are_found_first_and_say_why(index: FeatureIndex):
    (hit,) = index.search("cities")
    assert (hit.sae_id, hit.feature, hit.label, hit.label_method) == ("layer_1", 3, "names of cities", "n-gram rule")
    assert (hit.label_score, hit.density, hit.max_act) == (0.875, 1e-4, 6.5)
    assert [reason.kind for reason in hit.reasons] == ["label", "similar spelling"]
    assert hit.reasons[0].snippet == "names of cities"
    assert hit.reasons[0].spans == ((9, 15),)
    (hit,) = index.search("jumps fox")
    assert (hit.feature, [reason.kind for reason in hit.reasons]) == (2, ["example"])
    assert [hit.reasons[0].snippet[a:b] for a, b in hit.reasons[0].spans] == ["fox", "jumps"]
    assert "docstring" not in hit.reasons[0].snippet, "another context"
    (hit,) = index.search("lyon")
    assert (hit.feature, hit.reasons[0].kind, hit.reasons[0].snippet) == (1, "promoted token", " Lyon")
    assert hit.reasons[0].value == 0.5
    assert index.search("zebra") == [], "a context in which it does not fire"


def test_other_forms_and_misspellings_of_a_word_are_found(index: FeatureIndex):
    assert found(index.search("city"))[:1] != [], "by its stem"
    (hit, *_) = index.search("docstrimgs of functoins")
    assert hit.feature == 0
    assert hit.reasons[0].kind in ("label", "similar spelling")


def test_rankings_are_fused_as_by_hand(index: FeatureIndex):
    assert fuse([[5, 7], [7], [9, 5]]) == {5: 1 / 61 + 1 / 62, 7: 1 / 62 + 1 / 61, 9: 1 / 61}
    assert list(fuse([[2, 1], [1, 2]])) == [1, 2], "equal sums by number"
    assert list(fuse([[], []])) == []
    hits = index.search("docstring")
    ranks = {
        ("layer_2", 3): [1, 1],
        ("layer_1", 0): [2],
        ("layer_1", 2): [2],
        ("layer_1", 1): [1],
        ("layer_1", 3): [1],
    }
    got = {(hit.sae_id, hit.feature): hit.score for hit in hits}
    assert got == pytest.approx({key: sum(1 / (60 + rank) for rank in value) for key, value in ranks.items()})
    assert found(hits)[0] == ("layer_2", 3), "label and spelling"


def test_phrases_and_all_words_before_some(tmp_path: Path):
    texts = {0: "red green", 1: "green", 2: "green red blue", 3: "blue"}
    given = {"features": rows()["features"], "explanations": [explanation(index=i, text=t) for i, t in texts.items()]}
    with FeatureIndex.open(dataset(tmp_path / "d", given), tmp_path / "c", WordsOnly()) as index:
        assert {f for _, f in found(index.search("red green"))[:2]} == {0, 2}
        assert found(index.search("red green"))[2:] == [("layer_1", 1)]
        assert found(index.search('"red green"')) == [("layer_1", 0)]
        assert index.search("red green", limit=1) == index.search("red green")[:1]


def test_promoted_tokens_the_very_token_first(index: FeatureIndex):
    assert [(h.feature, h.score) for h in index.by_promoted(" Paris")] == [(2, 3.0), (0, 0.5), (3, 0.5)]
    assert [h.feature for h in index.by_promoted("paris")] == [3, 2, 0]
    assert [h.reasons[0].snippet for h in index.by_promoted("paris")] == ["paris", " Paris", " Paris"]
    assert found(index.by_promoted("(")) == found(index.search("(")) == [("layer_1", 1)]
    assert index.by_promoted(" Par") == []


def test_filters(index: FeatureIndex):
    def features(**bounds: Any) -> set[tuple[str, int]]:
        return set(found(index.search("docstring", filters=Filters(**bounds))))

    everything = features()
    assert everything == {("layer_1", 0), ("layer_1", 1), ("layer_1", 2), ("layer_1", 3), ("layer_2", 3)}
    assert features(sae_ids=["layer_2"]) == features(layers=[2]) == {("layer_2", 3)}
    assert features(min_density=1e-2, max_density=0.05) == {("layer_1", 1)}
    assert features(min_score=0.6) == {("layer_1", 1), ("layer_1", 3)}
    assert [h.feature for h in index.by_promoted(" Paris", filters=Filters(max_density=0.01))] == [2, 3]
    for wrong, message in (
        ({"sae_ids": ["layer_3"]}, "Did you mean 'layer_"),
        ({"layers": [7]}, "There are 2"),
        ({"min_density": -0.1}, "0 to 1"),
        ({"max_density": float("nan")}, "0 to 1"),
        ({"min_density": 0.5, "max_density": 0.1}, "above"),
        ({"sae_ids": "layer_1"}, "lists"),
    ):
        with pytest.raises(ConfigError, match=message):
            features(**wrong)
    for limit in (0, -1, 1001, True, 2.5):
        with pytest.raises(ConfigError, match="1 to 1000"):
            index.search("x", limit=limit)
    assert [layer_of(h) for h in ("resid_post.8", "transformer.h.11.mlp:output", "embed", None)] == [8, 11, None, None]


SYNTAX = [
    "", " ", '"', '""', '" OR "', "'", "')", "docstring AND", "NOT", "NEAR(a b)", "NEAR", "a NEAR/2 b", "labels:docstring",
    "{text}: x", "^docstring", "docs*", "*", "a + b", "(", ")))(((", "-x", "a\x00b", "\x00", "'; DROP TABLE features; --",
    '"; DELETE FROM labels; --', "x' UNION SELECT 1 --", "\ud800", "\udcff", "%", "_", "?", "?1", ":a", "\x02\x03\ue000",
    "﷽" * 100, "ｆｕｌｌ", "a" * 10_000_000, '"' * 10_000_000, "( " * 5_000_000, " ".join(map(str, range(100_000))),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SYNTAX)))
def test_nothing_typed_is_syntax(index: FeatureIndex, number: int):
    text = SYNTAX[number]
    before = hashlib.sha256((index.store.folder / file.DATABASE).read_bytes()).hexdigest()
    start = time.perf_counter()
    for answer in (index.search(text), index.by_promoted(text)):
        assert isinstance(answer, list)
    assert time.perf_counter() - start < 2
    assert hashlib.sha256((index.store.folder / file.DATABASE).read_bytes()).hexdigest() == before


def test_operators_are_words_and_the_rest_is_nothing(index: FeatureIndex):
    assert Terms.of('a "b c" NEAR(x) d" * "').terms == ("a", "b c", "NEAR(x)", "d")
    assert Terms.of("x x").any == '"x"'
    assert len(Terms.of(" ".join(map(str, range(100)))).terms) == 24
    assert Terms(('a"b',)).all == '"a""b"'
    assert Terms.of("a\x00b").terms == ("a", "b")
    assert found(index.search("cities OR NOT)")) == found(index.search("cities"))
    with pytest.raises(sqlite3.OperationalError):
        index.store._connection().execute("DELETE FROM features")


def test_equal_datasets_give_equal_bytes(tmp_path: Path):
    folders = []
    for name in "ab":
        with FeatureIndex.build(dataset(tmp_path / name), tmp_path / f"cache_{name}") as index:
            folders.append(index.store.folder)
    assert folders[0].name == folders[1].name
    for name in (file.DATABASE, file.VECTORS, file.OWNERS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_cache_is_used_and_follows_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache, written = tmp_path / "cache", []
    write = file.write
    monkeypatch.setattr(file, "write", lambda *args: written.append(1) or write(*args))
    for _ in range(2):
        FeatureIndex.open(
            dataset(tmp_path / "d") if not written else FeatureDataset.open(tmp_path / "d"), cache
        ).close()
    assert len(written) == 1
    changed = {"explanations": rows({3: "names of rivers"})["explanations"]}
    with FeatureWriter(tmp_path / "d") as writer:  # one label changes: the manifest stays the same
        before = writer.manifest
        writer.append("explanations", changed["explanations"])
    assert writer.manifest == before
    with FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), cache) as index:
        assert (found(index.search("rivers")), index.search("cities"), len(written)) == ([("layer_1", 3)], [], 2)
    FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), cache, WordsOnly()).close()
    assert len(written) == 3, "other vectors are another index"
    FeatureIndex.build(FeatureDataset.open(tmp_path / "d"), cache).close()
    assert len(written) == 4
    assert not [path.name for path in cache.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", [file.DATABASE, file.VECTORS, file.STAMP])
def test_a_half_written_index_is_never_used(tmp_path: Path, damage: str):
    data = dataset(tmp_path / "d")
    with FeatureIndex.open(data, tmp_path / "c") as index:
        path = index.store.folder / damage
    path.write_bytes(path.read_bytes()[:-5])
    with FeatureIndex.open(data, tmp_path / "c") as index:
        assert found(index.search("cities")) == [("layer_1", 3)]


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    data = dataset(tmp_path / "d")
    monkeypatch.setattr(file, "_vectors", full)
    with pytest.raises(DataError, match=r"disk is full.*Free space"):
        FeatureIndex.open(data, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="another cache_dir"):
        FeatureIndex.open(data, tmp_path / "file" / "c")


def test_a_killed_build_is_not_taken_for_an_index(tmp_path: Path):
    dataset(tmp_path / "d")
    build = Fork("tests.features.killed_build", str(tmp_path / "d"), str(tmp_path / "c"), output=tmp_path / "log")
    assert build.wait(100) == 9, build.output
    assert len(list((tmp_path / "c").iterdir())) == 1, "what it left is hidden and has no stamp"
    with FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), tmp_path / "c") as index:
        assert found(index.search("cities")) == [("layer_1", 3)]


def test_many_threads_read_at_once(index: FeatureIndex):
    expected = {text: index.search(text) for text in ("docstring", "Paris", "cities", "fox")}
    wrong: list[Any] = []

    def ask() -> None:
        for _ in range(5):
            wrong.extend(text for text, hits in expected.items() if index.search(text) != hits)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not os.access(index.store.folder / (file.DATABASE + "-wal"), os.F_OK)


def test_many_may_make_the_same_index_at_once(tmp_path: Path):
    data = dataset(tmp_path / "d")
    barrier, results, errors = threading.Barrier(6), [], []

    def make() -> None:
        barrier.wait()
        try:
            with FeatureIndex.open(data, tmp_path / "c") as index:
                results.append(found(index.search("cities")))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (results, errors) == ([[("layer_1", 3)]] * 6, [])
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_the_hashing_embedder_is_normalised_and_the_same_everywhere():
    embed = HashingEmbedder().embed
    vectors = embed(["names of cities", "names of cities", "name of cities", "opening brackets", "", "日本 ⟨e2⟩"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 0, 1], rtol=1e-6)
    assert (vectors[0] == vectors[1]).all()
    assert vectors[0] @ vectors[2] > HashingEmbedder.floor > vectors[0] @ vectors[3]
    # the CRC-32 of "a" is 0xE8B7BE43: its last byte is the place, its first bit the sign
    assert {place: float(vectors) for place, vectors in enumerate(embed(["A"])[0]) if vectors} == {0x43: -1.0}
    with pytest.raises(ConfigError, match="16 to 4096"):
        HashingEmbedder(0)


def test_vectors_of_the_dataset_are_used_where_the_model_is_the_same(tmp_path: Path):
    class Compass:
        """Two words and their vectors, and no spelling in common."""

        floor, likeness = 0.9, "similar meaning"
        model = EmbeddingModel("org/compass", dim=4, normalised=True)

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.array(
                [[1, 0, 0, 0] if text == "metropolis" else [0, 1, 0, 0] for text in texts], dtype=np.float32
            )

    vector = {"vector": [1.0, 0.0, 0.0, 0.0], "text": "big towns"}
    given = rows() | {"embeddings": [embedding(index=1, vector=[0.0, 0.0, 1.0, 0.0]), embedding(index=3, **vector)]}
    data = dataset(
        tmp_path / "d", given, embedding=EmbeddingModel("org/compass", dim=4, normalised=True, revision="r1")
    )
    with FeatureIndex.open(data, tmp_path / "c", Compass()) as index:
        (hit,) = index.search("metropolis")
        assert (hit.feature, hit.reasons[0].kind, hit.reasons[0].snippet) == (3, "similar meaning", "big towns")
        assert hit.reasons[0].value == pytest.approx(1)
        assert index.search("metropolis", filters=Filters(min_density=0.01)) == []
    with pytest.raises(DataError, match=r"by 'org/compass' \(4 numbers\).*'hf_sae/hashing-v1' \(256\)"):
        FeatureIndex.open(data, tmp_path / "c", HashingEmbedder())
    with FeatureIndex.open(data, tmp_path / "c") as index:
        assert "words only: the vectors are by 'org/compass'" in index.note
        assert index.search("metropolis") == []
        assert found(index.search("cities")) == [("layer_1", 3)]
    model = EmbeddingModel("m", dim=4, normalised=True, revision="a")
    assert same_model(model, EmbeddingModel("m", dim=4, normalised=False))
    assert not same_model(model, EmbeddingModel("m", dim=4, normalised=True, revision="b"))
    assert not same_model(model, EmbeddingModel("m", dim=5, normalised=True))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "model2vec", None)
    for embedder, package in (
        (SentenceEmbedder("org/m"), "sentence-transformers"),
        (StaticEmbedder("org/m"), "model2vec"),
    ):
        with pytest.raises(ConfigError, match=f"pip install {package}"):
            FeatureIndex.open(dataset(tmp_path / package), tmp_path / "c", embedder)


def test_frequent_words_are_looked_for_while_they_can_be_afforded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "FEWEST", 1)
    texts = ["thing 0alpha", "thing 1alpha half", "thing 2alpha half", "thing 3alpha"]
    given = {"features": rows()["features"], "examples": [example(index=i, text=text) for i, text in enumerate(texts)]}
    with FeatureIndex.open(dataset(tmp_path / "d", given), tmp_path / "c") as index:
        assert index.store.frequent["examples"] == {"thing": 4, "half": 2}
        for budget, halves, things in ((1, 0, 0), (3, 2, 0), (5, 2, 4), (6, 2, 4)):
            monkeypatch.setattr(store, "BUDGET", budget)
            assert (len(index.search("half")), len(index.search("things"))) == (halves, things)
            assert len(index.search("half things")) == (4 if budget == 6 else halves), "the rarest first"
            assert found(index.search("things 2alpha"))[0] == ("layer_1", 2)
            assert found(index.search('"thing 2alpha"')) == [("layer_1", 2)], "a phrase is looked for as it is"


def test_the_rarest_word_is_always_looked_for_in_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "FEWEST", 1)
    monkeypatch.setattr(store, "BUDGET", 1)
    texts = ["thing", "half thing", "thing half", "thing"]
    labels = [explanation(index=i, text=text) for i, text in enumerate(texts)]
    given = {"features": rows()["features"], "explanations": labels}
    with FeatureIndex.open(dataset(tmp_path / "d", given), tmp_path / "c", WordsOnly()) as index:
        assert len(index.search("things")) == 4
        assert {f for _, f in found(index.search("things half"))} == {1, 2}


def test_rows_about_nothing_are_an_error(tmp_path: Path):
    dataset(tmp_path / "d")
    path = tmp_path / "d" / "data" / "explanations-00000.parquet"
    table = pq.read_table(path)
    for column, value in (("feature", [64] * table.num_rows), ("sae_id", ["other"] * table.num_rows)):
        place = table.column_names.index(column)
        pq.write_table(
            table.set_column(place, table.schema.field(column), pa.array(value, table.schema.field(column).type)), path
        )
        with pytest.raises(DataError, match="no feature of an autoencoder"):
            FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), tmp_path / "c")
