"""What the service gives as plain JSON values: features, hits, texts. Numbers that are not finite become `None`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..features import TopFeatures
    from ..features.index import FeatureIndex
    from ..features.reading import FeatureRecord
    from ..features.search.hits import Hit
    from .catalog import Served

CONTEXTS = 2  # shown with each hit
Json = dict[str, Any]


def feature_json(record: FeatureRecord, labels: dict[int, str], n_tokens: int | None) -> Json:
    """One feature with everything that its dataset says.

    Args:
        record ([`FeatureRecord`]): of the dataset.
        labels (`dict`): of other features, by number.
        n_tokens (`int`, *optional*): how many tokens were read.
    """
    facts = record.facts
    near = zip(facts["nn_idx"], facts["nn_cos"], strict=True)
    together = zip(facts["coact_idx"], facts["coact_count"], strict=True)
    return {
        "feature": record.feature,
        "density": finite(facts["density"]),
        "n_fired": facts["n_fired"],
        "n_tokens": n_tokens,
        "max_act": finite(facts["max_act"]),
        "mean_act": finite(facts["mean_act"]),
        "labels": sorted(map(_label, record.explanations), key=lambda label: -(label["score"] or -1.0)),
        "promoted": _tokens(facts["pos_tokens"], facts["pos_logits"]),
        "suppressed": _tokens(facts["neg_tokens"], facts["neg_logits"]),
        "histogram": _histogram(facts["hist_counts"], facts["hist_edges"]),
        "logit_histogram": _histogram(facts["logit_hist_counts"], facts["logit_hist_edges"]),
        "neighbours": [{"feature": j, "cosine": finite(cos), "label": labels.get(j)} for j, cos in near],
        "coactive": [{"feature": j, "tokens": n, "label": labels.get(j)} for j, n in together],
        "examples": [_example(row) for row in record.examples],
    }


def related(record: FeatureRecord) -> list[int]:
    """The other features that a record names."""
    return list(dict.fromkeys([*record.facts["nn_idx"], *record.facts["coact_idx"]]))


def labels_of(index: FeatureIndex | None, sae_id: str, features: Iterable[int]) -> dict[int, str]:
    """Labels of features, where they have one."""
    if index is None:
        return {}
    first = index.store.start[sae_id]
    hits = index.store.hits({first + feature: 0.0 for feature in features}, {})
    return {hit.feature: hit.label for hit in hits if hit.label}


def hit_json(hit: Hit, contexts: list[Json]) -> Json:
    """One feature that was found: why, its best label, and its strongest contexts."""
    reasons = [
        {
            "kind": reason.kind,
            "snippet": reason.snippet,
            "spans": [list(span) for span in reason.spans],
            "value": finite(reason.value),
        }
        for reason in hit.reasons
    ]
    return {
        "feature": hit.feature,
        "score": finite(hit.score),
        "label": hit.label,
        "label_method": hit.label_method,
        "label_score": finite(hit.label_score),
        "density": finite(hit.density),
        "max_act": finite(hit.max_act),
        "reasons": reasons,
        "contexts": contexts,
    }


def contexts_of(served: Served, feature: int) -> list[Json]:
    """The strongest contexts of a feature, from its dataset."""
    found = served.features.peek()
    if found is None:
        return []
    rows = [row for row in found.dataset.feature(found.sae_id, feature).examples if row["kind"] == "top"]
    return [_example(row) for row in sorted(rows, key=lambda row: row["rank"])[:CONTEXTS]]


def text_json(found: TopFeatures, labels: dict[int, str]) -> Json:
    """The strongest latents on each token of a text."""
    out = found.to_dict()
    for token in out["tokens"]:
        for entry in token["latents"]:
            entry["activation"] = finite(entry["activation"])
            entry["label"] = labels.get(entry["latent"])
    return {"scale": out["scale"], "maxima": {str(j): finite(m) for j, m in found.maxima.items()}, **out}


def finite(value: Any) -> float | None:
    """A number as JSON has it."""
    return None if value is None or not math.isfinite(value) else float(value)


def _histogram(counts: list[int], edges: list[float]) -> Json:
    return {"counts": list(counts or ()), "edges": [finite(edge) or 0.0 for edge in edges or ()]}


def _label(row: Json) -> Json:
    created = row.get("created")
    return {
        "text": row["text"],
        "method": row["method"],
        "model": row["model"],
        "score": finite(row["score"]),
        "score_method": row["score_method"],
        "chance": finite(row["score_chance"]),
        "low": finite(row["score_low"]),
        "high": finite(row["score_high"]),
        "judged": row["score_count"],
        "failed": row["score_failed"],
        "counterexamples": list(row["counterexamples"] or ()),
        "created": created.date().isoformat() if created is not None else None,
    }


def _tokens(tokens: list[str], logits: list[float]) -> list[Json]:
    return [{"token": token, "logit": finite(logit)} for token, logit in zip(tokens, logits, strict=True)]


def _example(row: Json) -> Json:
    return {
        "kind": row["kind"],
        "bin": row["bin"],
        "bin_min": finite(row["bin_min"]),
        "bin_max": finite(row["bin_max"]),
        "bin_share": finite(row["bin_share"]),
        "tokens": row["tokens"],
        "token_ids": row["token_ids"],
        "activations": [finite(act) for act in row["acts"]],
        "peak": row["max_pos"],
        "special": list(row["special_pos"] or ()),
        "document": row["doc_name"] or f"record {row['doc_id']:,}",
    }
