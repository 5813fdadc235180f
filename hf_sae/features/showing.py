"""From what is known of features to what views show: plain values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..views import ContextView, FeatureView, GridView, HitView, LabelView, ReasonView, RelatedView


if TYPE_CHECKING:
    from .reading import FeatureRecord
    from .search.hits import Hit
    from .top import TopFeatures

Row = Mapping[str, Any]
_BEST_FIRST = -1.0  # a label without a score stands behind those that have one


def feature_view(
    record: FeatureRecord,
    *,
    labels: Mapping[int, str] | None = None,
    href: Callable[[int], str] | None = None,
    clickable: bool = False,
) -> FeatureView:
    """A feature of a dataset as a feature page shows it.

    Args:
        record ([`FeatureRecord`]): from [`FeatureDataset.feature`].
        labels (`dict`, *optional*): what related latents are called.
        href (`Callable`, *optional*): from a latent to its page.
        clickable (`bool`): tokens and latents take clicks, which the page listens for.
    """
    facts, source, named = record.facts, record.source, labels or {}

    def related(indices: str, values: str) -> list[RelatedView]:
        pairs = zip(facts[indices], facts[values], strict=True)
        return [RelatedView(j, value, named.get(j), None if href is None else href(j)) for j, value in pairs]

    return FeatureView(
        record.sae_id,
        record.feature,
        density=facts["density"],
        maximum=facts["max_act"],
        tokens_read=None if source is None else source.n_tokens,
        mean=facts["mean_act"] if facts["n_fired"] else None,
        labels=label_views(record.explanations),
        contexts=context_groups(record.examples),
        promoted=list(zip(facts["pos_tokens"], facts["pos_logits"], strict=True)),
        suppressed=list(zip(facts["neg_tokens"], facts["neg_logits"], strict=True)),
        effects_note=record.effects_note,
        counts=facts["hist_counts"],
        edges=facts["hist_edges"],
        logit_counts=facts["logit_hist_counts"],
        logit_edges=facts["logit_hist_edges"],
        nearest=related("nn_idx", "nn_cos"),
        together=related("coact_idx", "coact_count"),
        place=None if source is None else source.hook_in,
        place_out=None if source is None else source.hook_out,
        architecture=None if source is None else source.architecture,
        d_sae=None if source is None else source.d_sae,
        base_model=None if source is None else source.base_model,
        clickable=clickable,
    )


def label_views(rows: Sequence[Row]) -> list[LabelView]:
    """Rows of `explanations`, the best score first, the others in order."""
    ordered = sorted(rows, key=lambda row: -(_BEST_FIRST if row["score"] is None else row["score"]))
    return [
        LabelView(
            row["text"],
            row["method"],
            row["model"],
            row["score"],
            row["score_method"],
            row["score_chance"],
            row["score_low"],
            row["score_high"],
            row["score_count"],
            row["score_failed"],
            tuple(row["counterexamples"]),
        )
        for row in ordered
    ]


def context_groups(rows: Sequence[Row]) -> dict[str, list[ContextView]]:
    """Rows of `examples` by the tabs of a feature page.

    The upper half of the intervals is `Middle` (what is stronger still is `Top`), the lower half `Low`; the strongest interval
    is first in each.
    """
    kinds: dict[str, list[Row]] = {"top": [], "quantile": [], "random": [], "zero": []}
    for row in rows:
        kinds[row["kind"]].append(row)
    by_bin = sorted(kinds["quantile"], key=lambda row: (-row["bin"], row["rank"]))
    bins = [list(group) for _, group in groupby(by_bin, key=lambda row: row["bin"])]
    upper = (len(bins) + 1) // 2
    groups = {
        "Top": kinds["top"],
        "Middle": [row for group in bins[:upper] for row in group],
        "Low": [row for group in bins[upper:] for row in group],
        "Random": kinds["random"],
        "Not firing": kinds["zero"],
    }
    return {name: [context_view(row) for row in group] for name, group in groups.items() if group}


def context_view(row: Row) -> ContextView:
    """One row of `examples`."""
    name = row["doc_name"] or f"record {row['doc_id']}"
    return ContextView(
        row["tokens"],
        row["acts"],
        row["token_ids"],
        row["max_pos"],
        frozenset(row["special_pos"]),
        name,
        _interval(row),
    )


def _interval(row: Row) -> str:
    if row["bin_min"] is None or row["bin_max"] is None:
        return ""
    share = "" if row["bin_share"] is None else f", {100 * row['bin_share']:.2g} % of its contexts"
    return f"peak {row['bin_min']:.3g} to {row['bin_max']:.3g}{share}"


def hit_view(
    hit: Hit,
    contexts: Sequence[ContextView] = (),
    *,
    label: LabelView | None = None,
    href: str | None = None,
    clickable: bool = False,
) -> HitView:
    """A hit as a card shows it.

    Args:
        hit ([`Hit`]): from [`FeatureIndex`].
        contexts (`list` of [`ContextView`]): its strongest, from [`context_view`] of rows of `examples`.
        label ([`LabelView`], *optional*): all about its label; otherwise what the hit says of it.
        href (`str`, *optional*): its page.
        clickable (`bool`): the page listens for clicks.
    """
    if label is None and hit.label is not None:
        label = LabelView(hit.label, hit.label_method or "", score=hit.label_score)
    reasons = [ReasonView(reason.kind, reason.snippet, reason.spans, reason.value) for reason in hit.reasons]
    return HitView(
        hit.sae_id,
        hit.feature,
        label,
        hit.density,
        hit.max_act,
        hit.score,
        reasons=reasons,
        contexts=contexts,
        href=href,
        clickable=clickable,
    )


def grid_view(
    top: TopFeatures,
    *,
    limit: int = 40,
    position: int | None = None,
    labels: Mapping[int, str] | None = None,
    sae_id: str = "",
    clickable: bool = False,
) -> GridView:
    """The latents of a text as a grid, the strongest share of full shade first.

    Args:
        top ([`TopFeatures`]): from [`top_features`]; what it does not list of a token stays empty.
        limit (`int`): rows.
        position (`int`, *optional*): sort by this token instead.
        labels (`dict`, *optional*): what latents are called.
        sae_id (`str`), clickable (`bool`): as in [`GridView`].
    """
    rows: dict[int, list[float]] = {}
    for place, (latents, activations) in enumerate(zip(top.latents, top.activations, strict=True)):
        for latent, activation in zip(latents, activations, strict=True):
            rows.setdefault(latent, [0.0] * len(top.tokens))[place] = activation

    def key(latent: int) -> tuple[float, float, int]:
        sizes = [abs(a) / (abs(top.maxima[latent]) or 1.0) for a in rows[latent]]
        return 0.0 if position is None else -sizes[position], -max(sizes), latent

    order = sorted(rows, key=key)[:limit]
    by = "strength anywhere in the text" if position is None else f"strength on token {position}"
    shown = f", the first {limit} of {len(rows)} latents" if len(rows) > limit else ""
    return GridView(
        top.tokens,
        order,
        [rows[latent] for latent in order],
        token_ids=top.token_ids,
        special=top.special,
        labels=labels or {},
        maxima=top.maxima,
        order=by + shown,
        scale=top.scale,
        position=position,
        sae_id=sae_id,
        clickable=clickable,
    )
