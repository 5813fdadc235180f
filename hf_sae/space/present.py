"""From the service's JSON values to the views' HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..terminal import visible
from ..views import (
    ContextView,
    FeatureView,
    GridView,
    HitView,
    LabelView,
    ReasonView,
    RelatedView,
    feature_page,
    hit_list,
    token_grid,
    token_strip,
)
from .limits import MAX_FEATURE, MAX_NAME, RequestError
from .links import Link
from .records import Json
from .service import Service


MAX_KEPT = 500  # features of a visitor's list
GRID_ROWS = 40
KINDS = {"top": "Top", "random": "Random", "zero": "Not firing"}
ORDER = ("Top", "Middle", "Low", "Random", "Not firing")


def feature(found: Json) -> str:
    """A feature page."""
    sae = found["sae"]
    near = [
        RelatedView(one["feature"], one["cosine"] or 0.0, one["label"], _href(sae, one)) for one in found["neighbours"]
    ]
    together = [RelatedView(one["feature"], one["tokens"], one["label"], _href(sae, one)) for one in found["coactive"]]
    view = FeatureView(
        sae_id=sae,
        latent=found["feature"],
        density=found["density"],
        maximum=found["max_act"],
        tokens_read=found["n_tokens"],
        mean=found["mean_act"],
        labels=[_label(label) for label in found["labels"]],
        contexts=_contexts(found["examples"]),
        promoted=_tokens(found["promoted"]),
        suppressed=_tokens(found["suppressed"]),
        effects_note=found["logit_effects"],
        counts=found["histogram"]["counts"],
        edges=found["histogram"]["edges"],
        logit_counts=found["logit_histogram"]["counts"],
        logit_edges=found["logit_histogram"]["edges"],
        nearest=near,
        together=together,
        place=found["hook_in"],
        place_out=found["hook_out"],
        architecture=found["architecture"],
        d_sae=found["d_sae"],
        base_model=found["base_model"],
    )
    return feature_page(view)


def hits(found: Json) -> str:
    """Cards of what was found, and how it was looked for."""
    how = f'<p class="hs-app-note">Searched: {escape(found["how"])}.</p>' if found.get("how") else ""
    return hit_list([_hit(hit, found["sae"]) for hit in found["hits"]]) + how


def grid(found: Json, position: int | None = None) -> str:
    """Tokens by features; sorted by one token, or by the strongest share of a feature's own maximum."""
    tokens, maxima = found["tokens"], {int(j): m for j, m in found["maxima"].items()}
    values: dict[int, dict[int, float]] = {}
    labels: dict[int, str] = {}
    for place, token in enumerate(tokens):
        for entry in token["latents"]:
            values.setdefault(entry["latent"], {})[place] = entry["activation"] or 0.0
            if entry["label"]:
                labels[entry["latent"]] = entry["label"]

    def strength(latent: int) -> tuple[float, float, int]:
        shares = {place: abs(a) / (maxima.get(latent) or 1.0) for place, a in values[latent].items()}
        here = 0.0 if position is None else shares.get(position, 0.0)
        return -here, -sum(shares.values()), latent

    rows = sorted(values, key=strength)[:GRID_ROWS]
    chosen = position if position is not None and 0 <= position < len(tokens) else None
    order = "activation over the whole text" if chosen is None else f"activation on token {chosen}"
    view = GridView(
        tokens=[token["token"] for token in tokens],
        latents=rows,
        activations=[[values[latent].get(place, 0.0) for place in range(len(tokens))] for latent in rows],
        token_ids=[token["id"] for token in tokens],
        special=[place for place, token in enumerate(tokens) if token["special"]],
        labels=labels,
        maxima={latent: maxima[latent] for latent in rows if maxima.get(latent)},
        hrefs={latent: _address(found["sae"], latent) for latent in rows},
        order=order,
        scale=found["scale"],
        position=chosen,
        sae_id=found["sae"],
        clickable=True,
    )
    return token_grid(view)


def strip(found: Json, maximum: float | None = None) -> str:
    """One feature on a text."""
    return token_strip(
        found["tokens"],
        found["activations"],
        maximum=maximum,
        token_ids=found["token_ids"],
        special=found["special"],
        latent=found["feature"],
    )


def gallery(service: Service, sae: str) -> str:
    """Features to begin with, once the index is there."""
    try:
        chosen = service.examples(sae)
        name = service.catalog.find(sae).name
    except RequestError:
        return ""
    if not chosen:
        return ""
    rows = (
        f'<li><a href="{escape(_address(name, hit["feature"]), quote=True)}" data-latent="{hit["feature"]}" '
        f'data-sae="{escape(name, quote=True)}">{escape(_named(hit))}</a></li>'
        for hit in chosen
    )
    return f'<ul class="hs-app-chips"><li>Start here:</li>{"".join(rows)}</ul>'


def bookmarks(items: Sequence[Mapping[str, Any]]) -> str:
    """A visitor's list, as links."""
    rows = (
        f'<li><a class="hs-link" href="{escape(_address(item["sae"], item["feature"]), quote=True)}" '
        f'data-latent="{item["feature"]}" data-sae="{escape(item["sae"], quote=True)}">'
        f"{escape(item['sae'])} {item['feature']}</a> {escape(item['label'] or '')}</li>"
        for item in items
    )
    return f'<ul class="hs-app-list">{"".join(rows)}</ul>'


def saved(items: Any) -> list[Json]:
    """The entries of a list that came from a browser or a file, those that make sense."""
    found: list[Json] = []
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        sae, number, label = item.get("sae"), item.get("feature"), item.get("label")
        whole = isinstance(number, int | float) and not isinstance(number, bool) and number == number
        if isinstance(sae, str) and sae and whole and 0 <= number <= MAX_FEATURE:
            entry = {"sae": sae[:MAX_NAME], "feature": int(number)}
            if all((old["sae"], old["feature"]) != (entry["sae"], entry["feature"]) for old in found):
                found.append({**entry, "label": label[:MAX_NAME] if isinstance(label, str) else None})
    return found[-MAX_KEPT:]


def states(service: Service, sae: str) -> str:
    """The states of all parts in one word each, to see whether anything changed."""
    try:
        served = service.catalog.find(sae)
    except RequestError as error:
        return str(error)
    return " ".join([served.name, *served.status.values()])


def status(service: Service, sae: str) -> str:
    """What is still loading, or could not be loaded."""
    try:
        served = service.catalog.find(sae)
    except RequestError as error:
        return f'<p class="hs-app-problem" role="status">{escape(str(error))}</p>'
    lines = []
    for part, useful in (
        (served.features, "Nothing can be shown before."),
        (served.index, "Pages of features work already."),
        (served.machine, "Explore and Search work already; your own text and steering need it."),
    ):
        if part.state == "loading":
            lines.append(f'<p class="hs-app-note" role="status">{escape(part.words)} {useful}</p>')
            break
        if part.state == "failed":
            lines.append(f'<p class="hs-app-problem" role="status">{escape(part.words)}</p>')
    return "".join(lines)


def turned_up(found: Json) -> str:
    """Twice the maximum of a feature, as commands write it."""
    return f"{2 * (found['max_act'] or 1.0):.3g}"


def _named(hit: Json) -> str:
    """A feature in a few words: its label, or the token that its strongest context peaks at."""
    if hit["label"] or not hit["contexts"]:
        return hit["label"] or str(hit["feature"])
    context = hit["contexts"][0]
    return f"fires on “{visible(context['tokens'][context['peak']].strip())}”"


def _hit(hit: Json, sae: str) -> HitView:
    label = None
    if hit["label"]:
        label = LabelView(hit["label"], hit["label_method"] or "", score=hit["label_score"])
    return HitView(
        sae_id=sae,
        latent=hit["feature"],
        label=label,
        density=hit["density"],
        maximum=hit["max_act"],
        reasons=[
            ReasonView(reason["kind"], reason["snippet"], [tuple(span) for span in reason["spans"]], reason["value"])
            for reason in hit["reasons"]
        ],
        contexts=[_context(context) for context in hit["contexts"]],
        href=_address(sae, hit["feature"]),
    )


def _label(label: Json) -> LabelView:
    return LabelView(
        label["text"],
        label["method"],
        model=label["model"],
        score=label["score"],
        score_method=label["score_method"],
        chance=label["chance"],
        low=label["low"],
        high=label["high"],
        judged=label["judged"],
        failed=label["failed"],
        counterexamples=label["counterexamples"],
    )


def _contexts(examples: Sequence[Json]) -> dict[str, list[ContextView]]:
    """By group; of the intervals of activation, the lower third are low and the others in the middle, the strongest first."""
    bins = [example["bin"] for example in examples if example["bin"] is not None]
    low = max(bins, default=0) / 3
    groups: dict[str, list[ContextView]] = {name: [] for name in ORDER}
    for example in sorted(examples, key=lambda example: -(example["bin"] or 0)):
        name = KINDS.get(example["kind"]) or ("Low" if example["bin"] <= low else "Middle")
        groups[name].append(_context(example))
    return {name: contexts for name, contexts in groups.items() if contexts}


def _context(example: Json) -> ContextView:
    note = ""
    if example["bin_min"] is not None and example["bin_max"] is not None:
        note = f"activations from {example['bin_min']:.3g} to {example['bin_max']:.3g}"
        note += f", {example['bin_share']:.0%} of its contexts" if example["bin_share"] is not None else ""
    return ContextView(
        example["tokens"],
        [act or 0.0 for act in example["activations"]],
        token_ids=example["token_ids"],
        peak=example["peak"],
        special=example["special"],
        document=example["document"],
        note=note,
    )


def _tokens(tokens: Sequence[Json]) -> list[tuple[str, float]]:
    return [(one["token"], one["logit"] or 0.0) for one in tokens]


def _href(sae: str, one: Json) -> str:
    return _address(sae, one["feature"])


def _address(sae: str, number: int) -> str:
    return "?" + Link(sae=sae, feature=number).query()
