"""Texts as vectors: by spelling without any model, or by a static or sentence-transformers model by name."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from ...errors import ConfigError
from ..manifest import EmbeddingModel


_WORD = re.compile(r"\w+|[^\w\s]")
MAX_TEXT = 2000  # characters of a text that are embedded


class Embedder(Protocol):
    """Turns texts into vectors.

    `floor` is the cosine below which two texts count as unrelated, `likeness` what a cosine above it says.
    """

    floor: float
    likeness: str

    @property
    def model(self) -> EmbeddingModel:
        """What makes the vectors, as a dataset records it."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `[texts, dim]` of length 1 (0 for a text without content), float32."""


class WordsOnly:
    """In place of an [`Embedder`]: search words, embed nothing."""


class HashingEmbedder:
    """Words and their parts of 3 to 5 letters, hashed into a vector of fixed size: offline, the same everywhere.

    It finds other forms of a word and misspellings. It knows no meaning: "dog" and "puppy" are unrelated.

    Args:
        dim (`int`): length of a vector.

    Raises:
        ConfigError: for a length that is none.
    """

    floor = 0.35  # unrelated short texts reach about 0.27 among 100,000 at 256 dimensions
    likeness = "similar spelling"

    def __init__(self, dim: int = 256) -> None:
        if not 16 <= dim <= 4096:
            raise ConfigError(f"dim={dim}: give 16 to 4096.")
        self.dim = dim

    @property
    def model(self) -> EmbeddingModel:
        """Name and version of the rule."""
        return EmbeddingModel("hf_sae/hashing-v1", dim=self.dim, normalised=True)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `[texts, dim]`."""
        rows, starts = [], []
        for text in texts:
            starts.append(len(rows))
            rows.append(_hashed("", self.dim))  # of an empty text too there is a row
            rows += [_hashed(word[:64], self.dim) for word in _WORD.findall(text[:MAX_TEXT].casefold())]
        if not rows:
            return np.zeros((0, self.dim), dtype=np.float32)
        return unit(np.add.reduceat(np.stack(rows), starts, axis=0))


@lru_cache(maxsize=1 << 15)  # 32 MiB at 256 dimensions
def _hashed(word: str, dim: int) -> np.ndarray:
    framed = f"<{word}>"
    parts = [framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)] if len(word) > 2 else []
    hashes = np.array([zlib.crc32(part.encode("utf-8", "replace")) for part in [word, *parts]], dtype=np.int64)
    # a word is worth as much as all its parts together
    weights = np.full(len(hashes), (len(parts) or 1) ** -0.5)
    weights[0] = 1.0 if word else 0.0
    weights[hashes >> 31 == 1] *= -1
    return np.bincount(hashes % (2**31) % dim, weights, minlength=dim).astype(np.float32)


class SentenceEmbedder:
    """A model of sentence-transformers.

    Args:
        name (`str`): Hub id or folder.
        revision (`str`, *optional*): commit.

    Raises:
        ConfigError: on first use, if the package is not installed.
    """

    floor = 0.3
    likeness = "similar meaning"

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name, self.revision = name, revision

    @property
    def model(self) -> EmbeddingModel:
        """The model and its dimension."""
        # the name before sentence-transformers 6 is the second one
        size = getattr(self._model, "get_embedding_dimension", None) or self._model.get_sentence_embedding_dimension
        return EmbeddingModel(self.name, dim=int(size()), normalised=True, revision=self.revision)

    @cached_property
    def _model(self) -> Any:
        module = _installed("sentence_transformers", "sentence-transformers", self.name)
        return module.SentenceTransformer(self.name, revision=self.revision, trust_remote_code=False)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `[texts, dim]`."""
        if not len(texts):  # the package gives a vector of no dimension
            return np.zeros((0, self.model.dim), dtype=np.float32)
        return unit(self._model.encode([text[:MAX_TEXT] for text in texts], show_progress_bar=False))


class StaticEmbedder:
    """A model of model2vec: a table of token vectors, fast on any processor.

    Args:
        name (`str`): Hub id or folder, such as `minishlab/potion-base-8M`.

    Raises:
        ConfigError: on first use, if the package is not installed.
    """

    floor = 0.3
    likeness = "similar meaning"

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def model(self) -> EmbeddingModel:
        """The model and its dimension."""
        return EmbeddingModel(self.name, dim=int(self._model.dim), normalised=True)

    @cached_property
    def _model(self) -> Any:
        return _installed("model2vec", "model2vec", self.name).StaticModel.from_pretrained(self.name)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `[texts, dim]`."""
        if not len(texts):  # the package gives a vector of no dimension
            return np.zeros((0, self.model.dim), dtype=np.float32)
        return unit(self._model.encode([text[:MAX_TEXT] for text in texts]))


def same_model(given: EmbeddingModel, wanted: EmbeddingModel) -> bool:
    """Whether vectors of the two can be compared: name, dimension, and revision where both say one."""
    revisions = {given.revision, wanted.revision} - {None}
    return (given.model, given.dim) == (wanted.model, wanted.dim) and len(revisions) < 2


def unit(vectors: Any) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one."""
    out = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.where(norms > 0, norms, 1)


def _installed(module: str, package: str, model: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{model!r} needs the package {package}: pip install {package}. HashingEmbedder() needs none."
        ) from error
