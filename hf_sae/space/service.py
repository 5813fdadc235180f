"""The functions of the Space, without Gradio: plain values in, JSON values out. The page, the API and MCP are faces of them."""

from __future__ import annotations

from typing import Any

from . import gallery, limits
from .catalog import Served
from .limits import RequestError, words
from .records import Json, contexts_of, feature_json, hit_json, labels_of, related, text_json
from .steered import Steered


ORDERS = ("tf-idf", "max", "sum", "mean")
NO_FEATURES = (
    "has no feature dataset. Its owner makes one with `hf-sae features` and pushes it as REPO-features; until then, texts can be "
    "inspected."
)


class Service(Steered):
    """What can be asked about the autoencoders of a catalog.

    Every method checks all of its arguments. Where something cannot be given, it raises a [`RequestError`] whose words are for
    the person who asked.

    Args:
        catalog ([`Catalog`]): what is served.
        patience (`float`): seconds to wait for what is still loading.
    """

    def list_saes(self) -> list[dict[str, Any]]:
        """Lists the sparse autoencoders that can be asked about here, with their host model, place, size and whether they are loaded."""
        return [self._entry(served) for served in self.catalog.served()]

    def search_features(
        self,
        query: str,
        sae: str = "",
        by: str = "words",
        limit: int = 10,
        min_density: float | None = None,
        max_density: float | None = None,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Finds features (latents of a sparse autoencoder) by words of their labels, contexts and promoted tokens, and says why each matched.

        Args:
            query: What to find, such as "docstring"; text in double quotes is a phrase. With by="promoted", a token such as " Paris".
            sae: Name of the autoencoder as list_saes gives it, or a repo of the Hub as user/repo or user/repo/folder. Empty: the first one.
            by: "words" searches labels, contexts and promoted tokens; "promoted" finds features that raise the probability of the very token.
            limit: How many features, 1 to 100.
            min_density: Only features that fire on at least this share of tokens, 0 to 1.
            max_density: Only features that fire on at most this share of tokens, 0 to 1.
            min_score: Only features whose label has at least this score, 0 to 1.
        """
        query = limits.text(query, "query", limits.MAX_QUERY)
        by = limits.one_of(by, "by", ("words", "promoted"))
        limit = limits.whole(limit, "limit", 1, limits.MAX_HITS)
        served = self.catalog.find(sae)
        index, sae_id = self._index(served)
        filters = self._filters(sae_id, min_density, max_density, min_score)
        with words():
            found = index.search(query, limit, filters) if by == "words" else index.by_promoted(query, limit, filters)
        return self._found(served, found, index.note)

    def get_feature(self, feature: int, sae: str = "") -> dict[str, Any]:
        """Everything that is known of one feature: labels with scores, how often and how strongly it fires, contexts token by token, promoted and suppressed tokens, nearest features.

        Args:
            feature: Number of the feature, 0 to d_sae - 1.
            sae: Name of the autoencoder as list_saes gives it, or a repo of the Hub as user/repo or user/repo/folder. Empty: the first one.
        """
        feature = limits.whole(feature, "feature", 0, limits.MAX_FEATURE)
        served = self.catalog.find(sae)
        found = self._part(served.features)
        if found is None:
            raise RequestError(f"{served.name} {NO_FEATURES}")
        source = found.dataset.saes[found.sae_id]
        try:
            with words():
                record = found.dataset.feature(found.sae_id, feature)
        except KeyError as error:
            raise RequestError(
                f"{served.name} has nothing about feature {feature}: it has features 0 to {source.d_sae - 1:,}."
            ) from error
        labels = labels_of(served.index.peek(), found.sae_id, related(record))
        facts = served.facts
        where = {key: facts[key] for key in ("d_sae", "hook_in", "hook_out", "base_model", "architecture")}
        note = str(found.dataset.data.get("logit_effects") or "")
        about = {"sae": served.name, **where, "logit_effects": note}
        return {**about, **feature_json(record, labels, source.n_tokens)}

    def inspect_text(self, text: str, sae: str = "", top: int = 5) -> dict[str, Any]:
        """Reads a text with the host model and gives the strongest features on each of its tokens.

        Args:
            text: What to read; at most as many tokens as the host model's context.
            sae: Name of the autoencoder as list_saes gives it, or a repo of the Hub as user/repo or user/repo/folder. Empty: the first one.
            top: Features per token, 1 to 20.
        """
        text = limits.readable(text, "text")
        top = limits.whole(top, "top", 1, limits.MAX_TOP)
        served = self.catalog.find(sae)
        machine = self._part(served.machine)
        with words():
            from ..features import top_features

            found = machine.call(
                lambda: top_features(machine.saes[served.name], machine.host, machine.tokenizer, text, top)
            )
        named = sorted({latent for row in found.latents for latent in row})
        return {"sae": served.name, **text_json(found, self._labels(served, named))}

    def activations_on(self, text: str, feature: int, sae: str = "") -> dict[str, Any]:
        """What one feature does on each token of a text.

        Args:
            text: What to read.
            feature: Number of the feature.
            sae: Name of the autoencoder; empty: the first one.
        """
        text = limits.readable(text, "text")
        served = self.catalog.find(sae)
        machine = self._part(served.machine)
        feature = limits.whole(feature, "feature", 0, machine.saes[served.name].config.d_sae - 1)
        with words():
            from .reading import activations_of

            return machine.call(
                lambda: activations_of(machine.saes[served.name], machine.host, machine.tokenizer, text, feature)
            )

    def top_features_for_prompt(
        self, prompt: str, sae: str = "", order: str = "tf-idf", limit: int = 10
    ) -> dict[str, Any]:
        """Finds the features that fire on a text, and where in it each fires most.

        Args:
            prompt: The text to read.
            sae: Name of the autoencoder as list_saes gives it, or a repo of the Hub as user/repo or user/repo/folder. Empty: the first one.
            order: What comes first: "tf-idf" (strong here, rare elsewhere), "max", "sum" or "mean" of its activations.
            limit: How many features, 1 to 100.
        """
        prompt = limits.readable(prompt, "prompt")
        order = limits.one_of(order, "order", ORDERS)
        limit = limits.whole(limit, "limit", 1, limits.MAX_HITS)
        served = self.catalog.find(sae)
        index, sae_id = self._index(served)
        machine = self._part(served.machine)
        with words():
            found = machine.call(
                lambda: index.by_prompt(
                    prompt, machine.host, machine.tokenizer, machine.saes[served.name], sae_id, _order(order), limit
                )
            )
        return self._found(served, found, f"features that fire on the text, by {order}")

    def contrast_texts(self, texts_a: list[str], texts_b: list[str], sae: str = "", limit: int = 10) -> dict[str, Any]:
        """Finds the features that tell two sets of texts apart: those whose mean activation differs most.

        Args:
            texts_a: One set of texts, 1 to 16; a score above 0 means that the feature fires more here.
            texts_b: The other set of texts, 1 to 16.
            sae: Name of the autoencoder as list_saes gives it, or a repo of the Hub as user/repo or user/repo/folder. Empty: the first one.
            limit: How many features, 1 to 100.
        """
        texts_a, texts_b = limits.texts(texts_a, "texts_a"), limits.texts(texts_b, "texts_b")
        limit = limits.whole(limit, "limit", 1, limits.MAX_HITS)
        served = self.catalog.find(sae)
        index, sae_id = self._index(served)
        machine = self._part(served.machine)
        with words():
            found = machine.call(
                lambda: index.by_contrast(
                    texts_a, texts_b, machine.host, machine.tokenizer, machine.saes[served.name], sae_id, limit
                )
            )
        return self._found(served, found, "difference of mean activations over their spread")

    def examples(self, sae: str = "", seconds: float = 0.0) -> list[Json]:
        """Features that are easy to read, as hits; none where they are not there after so many seconds."""
        try:
            return self.catalog.find(sae).examples.get(seconds)
        except RequestError:
            return []

    def living(self, sae: str = "") -> list[int]:
        """The features that fired when the dataset was made."""
        served = self.catalog.find(sae)
        return gallery.living(served, self._index(served)[1])

    def label(self, feature: int, sae: str = "") -> str | None:
        """The best label of a feature, where the index is there and knows one."""
        return self._labels(self.catalog.find(sae), [feature]).get(feature)

    def maximum(self, feature: int, sae: str = "") -> float | None:
        """The strongest activation of a feature in its dataset, where the index is there."""
        served = self.catalog.find(sae)
        found, index = served.features.peek(), served.index.peek()
        if found is None or index is None:
            return None
        hits = index.store.hits({index.store.start[found.sae_id] + feature: 0.0}, {})
        return abs(hits[0].max_act) if hits and hits[0].max_act else None

    def _index(self, served: Served) -> tuple[Any, str]:
        found, index = self._part(served.features), self._part(served.index)
        if found is None or index is None:
            raise RequestError(f"{served.name} {NO_FEATURES}")
        return index, found.sae_id

    def _labels(self, served: Served, features: list[int]) -> dict[int, str]:
        found = served.features.peek()
        return {} if found is None else labels_of(served.index.peek(), found.sae_id, features)

    def _filters(self, sae_id: str, low: float | None, high: float | None, score: float | None) -> Any:
        from ..features.search.filters import Filters

        bounds = (
            limits.share(low, "min_density"),
            limits.share(high, "max_density"),
            limits.share(score, "min_score"),
        )
        with words():
            return Filters([sae_id], None, *bounds)

    def _found(self, served: Served, hits: list[Any], how: str) -> Json:
        with words():
            shown = [hit_json(hit, contexts_of(served, hit.feature)) for hit in hits]
        return {"sae": served.name, "how": how, "hits": shown}

    def _entry(self, served: Served) -> Json:
        found = served.features.peek()
        parts = {"features": served.features, "search": served.index, "host": served.machine}
        return {
            "sae": served.name,
            **_plain(served),
            "features": None if found is None else found.dataset.manifest.rows("features"),
            "tokens_read": None if found is None else found.dataset.saes[found.sae_id].n_tokens,
            "status": served.status,
            "notes": [part.words for part in parts.values() if part.words and part.state != "waiting"],
        }


def _plain(served: Served) -> Json:
    facts = served.facts
    return {key: facts[key] for key in ("architecture", "d_sae", "d_in", "hook_in", "hook_out", "base_model")}


def _order(name: str) -> Any:
    from ..features.search.firing import Maximum, Mean, TfIdf, Total

    return {"tf-idf": TfIdf, "max": Maximum, "sum": Total, "mean": Mean}[name]()
