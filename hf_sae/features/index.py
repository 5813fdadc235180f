"""`FeatureIndex`: find features by words, by what they promote, by a direction, by a prompt, by a contrast.

Parquet is the truth. The index is made from it, lies in a cache, and is made anew when the dataset is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..hosts.fingerprints import warn_of_another_host
from .search import file
from .search.cache import prune
from .search.contrast import Moments, standardised_difference
from .search.direction import cosines
from .search.embedders import Embedder, HashingEmbedder, WordsOnly
from .search.filters import Filters, checked_limit
from .search.firing import Order, TfIdf, firing, peak_text
from .search.hits import Hits, Reason
from .search.latents import Latents
from .search.store import Store
from .search.words import Words


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..models.modeling_sae import SAE
    from .reading import FeatureDataset


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
        self.dataset, self.store, self.note = dataset, store, note
        self._words = Words(store, embedder)

    @classmethod
    def open(
        cls,
        dataset: FeatureDataset,
        cache_dir: str | Path | None = None,
        embedder: Embedder | WordsOnly | None = None,
    ) -> Self:
        """The index of a dataset from the cache; it is made where it is not there, damaged, or of other content.

        Of the cache, the 16 indexes and 8 GiB that were used last are kept, and what is open.

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
            file.write(dataset, folder, key, embedder, anew)
            prune(folder.parent, file.STAMP)
        return cls(dataset, Store(folder), embedder, note)

    def search(self, text: str, limit: int = 20, filters: Filters | None = None) -> Hits:
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
        return self._words.search(text, checked_limit(limit), filters or Filters())

    def by_promoted(self, token: str, limit: int = 20, filters: Filters | None = None) -> Hits:
        """Features that raise the logit of a token most: the very token first, then with other spaces or upper case.

        Only the promoted tokens that the dataset lists for each feature are known. Score: the logit per unit of activation.

        Args:
            token (`str`): its text, with its space, such as `" Paris"`.
            limit (`int`), filters ([`Filters`], *optional*): as in [`FeatureIndex.search`].
        """
        return self._words.by_promoted(token, checked_limit(limit), filters or Filters())

    def by_direction(
        self,
        vector: Tensor | Sequence[float],
        sae: SAE,
        sae_id: str | None = None,
        limit: int = 20,
        filters: Filters | None = None,
    ) -> Hits:
        """Features whose decoder rows point most in a direction. Score: the cosine.

        Args:
            vector (`Tensor` or `list` of `float`): `[d_out]`, in the space that the autoencoder writes to.
            sae ([`SAE`]): the autoencoder.
            sae_id (`str`, *optional*): what the dataset calls it; not needed where the dataset is about one only.
            limit (`int`), filters ([`Filters`], *optional*): as in [`FeatureIndex.search`].

        Raises:
            ConfigError: if the autoencoder is not that of the dataset, and for limits and filters that cannot be.
            DataError: for a vector of another length, of zeros, or with a number that is not finite.
        """
        latents = Latents(self.dataset, self.store, sae, sae_id)
        values = cosines(vector, sae)
        order = values.argsort(descending=True, stable=True)
        return latents.hits(order, values, limit, filters, lambda j: Reason("direction", "", (), float(values[j])))

    def by_prompt(
        self,
        prompt: str,
        host: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sae: SAE,
        sae_id: str | None = None,
        order: Order | None = None,
        limit: int = 20,
        filters: Filters | None = None,
    ) -> Hits:
        """Features that fire on a text, BOS left out.

        Args:
            prompt (`str`): the text.
            host (`PreTrainedModel`), tokenizer: the model that the autoencoder reads.
            sae ([`SAE`]), sae_id (`str`, *optional*): as in [`FeatureIndex.by_direction`].
            order (`Order`, *optional*): which comes first: [`TfIdf`] (the default), [`Maximum`], [`Total`] or [`Mean`]; its
                values are the scores.
            limit (`int`), filters ([`Filters`], *optional*): as in [`FeatureIndex.search`].

        Raises:
            ConfigError: as in [`FeatureIndex.by_direction`].
            DataError: for an empty text, or one that is longer than the host reads.
            HookPointError: if the host has no such place of that width.
        """
        latents = Latents(self.dataset, self.store, sae, sae_id)
        warn_of_another_host(sae, host, tokenizer)
        found = firing(sae, host, tokenizer, prompt)
        activations, places = found.peaks()
        scores = (order or TfIdf())(latents.activity(found, activations))
        fires = activations.nonzero().squeeze(1)
        fires = fires[scores[fires].argsort(descending=True, stable=True)]

        def reason(latent: int) -> Reason:
            text, span = peak_text(tokenizer, found, int(places[latent]))
            return Reason("fires here", text, (span,), float(activations[latent]))

        return latents.hits(fires, scores, limit, filters, reason)

    def by_contrast(
        self,
        texts_a: Iterable[str],
        texts_b: Iterable[str],
        host: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sae: SAE,
        sae_id: str | None = None,
        limit: int = 20,
        filters: Filters | None = None,
    ) -> Hits:
        """Features whose mean activation differs most between two sets of texts, in either direction.

        Score: [`standardised_difference`], above 0 for what fires more in `texts_a`. Memory does not grow with the number of texts.

        Args:
            texts_a (`Iterable[str]`), texts_b (`Iterable[str]`): the two sets, each with 2 tokens at least.
            host (`PreTrainedModel`), tokenizer, sae ([`SAE`]), sae_id (`str`, *optional*): as in [`FeatureIndex.by_prompt`].
            limit (`int`), filters ([`Filters`], *optional*): as in [`FeatureIndex.search`].

        Raises:
            ConfigError, DataError, HookPointError: as in [`FeatureIndex.by_prompt`].
        """
        latents = Latents(self.dataset, self.store, sae, sae_id)
        warn_of_another_host(sae, host, tokenizer)
        a = Moments.of(texts_a, sae, host, tokenizer, "texts_a")
        b = Moments.of(texts_b, sae, host, tokenizer, "texts_b")
        effect = standardised_difference(a, b)

        def reason(latent: int) -> Reason:
            words = f"mean {a.mean[latent]:.3g} in texts_a, {b.mean[latent]:.3g} in texts_b"
            return Reason("contrast", words, (), float(effect[latent]))

        differs = effect.nonzero().squeeze(1)
        differs = differs[effect[differs].abs().argsort(descending=True, stable=True)]
        return latents.hits(differs, effect, limit, filters, reason)

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
