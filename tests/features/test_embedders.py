"""The two packages that embed by meaning, with models of a few words that are made here; nothing is downloaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_sae.features.index import FeatureIndex
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.search.embedders import Embedder, SentenceEmbedder, StaticEmbedder
from hf_sae.features.writing import FeatureWriter
from tests.features.toy_features import SAES, explanation, feature


WORDS = ["[UNK]", "[PAD]", "dog", "puppy", "docstring", "city", "paris"]


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def vectors() -> np.ndarray:
    """`[words, 16]`: a puppy is nearly a dog."""
    rows = np.eye(len(WORDS), 16, dtype=np.float32)
    rows[3] = rows[2] + 0.3 * rows[3]
    return rows


def static(folder: Path) -> Embedder:
    module = pytest.importorskip("model2vec", reason="model2vec is not installed: pip install model2vec")
    module.StaticModel(vectors=vectors(), tokenizer=tokenizer()).save_pretrained(folder)
    return StaticEmbedder(str(folder))


def sentences(folder: Path) -> Embedder:
    reason = "sentence-transformers is not installed: pip install sentence-transformers"
    module: Any = pytest.importorskip("sentence_transformers", reason=reason)
    parts: Any = pytest.importorskip("sentence_transformers.models", reason=reason)
    module.SentenceTransformer(modules=[parts.StaticEmbedding(tokenizer(), embedding_weights=vectors())]).save(
        str(folder)
    )
    return SentenceEmbedder(str(folder))


@pytest.mark.parametrize("make", [static, sentences])
def test_a_real_model_embeds_and_finds_what_is_meant(make: Any, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages while a model is made
        embedder = make(tmp_path / "model")
    assert (embedder.model.dim, embedder.model.normalised) == (16, True)
    found = embedder.embed(["dog", "puppy", "city", ""])
    assert (found.shape, found.dtype) == ((4, 16), np.float32)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-5)
    expected = vectors()[[2, 3, 5]]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found[:3] == pytest.approx(expected, abs=1e-4)
    assert embedder.embed([]).shape == (0, 16)
    with FeatureWriter(tmp_path / "d", SAES) as writer:
        writer.append("features", [feature(index=i) for i in range(2)])
        writer.append("explanations", [explanation(index=i, text=text) for i, text in enumerate(("dog", "city"))])
    with FeatureIndex.open(FeatureDataset.open(tmp_path / "d"), tmp_path / "c", embedder) as index:
        (hit,) = index.search("puppy")
    assert (hit.feature, hit.reasons[0].kind) == (0, "similar meaning")
    assert hit.reasons[0].value == pytest.approx(float(found[0] @ found[1]), abs=1e-4)
