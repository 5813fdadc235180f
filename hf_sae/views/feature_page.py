"""One latent on one page: what it is called, where it fires, what it does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .charts import bars, histogram
from .contexts import context_rows, distinct
from .feature import FeatureView, RelatedView
from .labels import LabelView, basis, counterexamples, label_line
from .markup import attributes, handle, text
from .words import aligned, count, number, place, rate, silence, strength


def feature_page(view: FeatureView, uid: str = "") -> str:
    """A feature page: header, contexts in tabs, and beside them what it promotes, how strong it is, and what is near.

    Tabs and the switch of scale are radio buttons, and no script runs.

    Args:
        view ([`FeatureView`]): what to show.
        uid (`str`): makes the ids of the page its own, where a document shows the same latent twice.
    """
    name = "hs-" + hashlib.sha256(f"{view.sae_id}\0{view.latent}\0{uid}".encode("utf-8", "replace")).hexdigest()[:10]
    marks = attributes(id=name, data_latent=view.latent, data_sae=view.sae_id, aria_label=f"Feature {view.latent}")
    return (
        f'<article class="hs hs-feature"{marks}>{_header(view)}<div class="hs-columns">{_contexts(view, name)}'
        f'<div class="hs-aside">{_effects(view)}{_strengths(view)}{_related(view)}{_about(view)}</div></div></article>'
    )


def _header(view: FeatureView) -> str:
    best = view.labels[0] if view.labels else None
    fires = rate(view.density)
    facts = [fires if fires in ("never fired", "density not known") else f"Fires on {fires}"]
    if view.maximum is not None:
        facts.append(strength(view.maximum, view.tokens_read))
    if view.mean is not None:
        facts.append(f"mean {number(view.mean)} where it fires")
    lines = [f'<p class="hs-basis">{text(_sentence(basis(best)))}</p>{counterexamples(best)}' if best else ""]
    lines.append(_other_labels(view.labels[1:]))
    listed = "".join(f"<li>{text(fact)}</li>" for fact in facts)
    return (
        f'<header class="hs-head"><h2><span class="hs-index">{view.latent:d}</span> {label_line(best)}</h2>{"".join(lines)}'
        f'<ul class="hs-facts">{listed}</ul></header>'
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _other_labels(labels: Sequence[LabelView]) -> str:
    if not labels:
        return ""
    rows = "".join(
        f'<li>{label_line(label)}<p class="hs-basis">{text(_sentence(basis(label)))}</p>{counterexamples(label)}</li>'
        for label in labels
    )
    return f'<details class="hs-fold"><summary>{len(labels)} other label{"s" * (len(labels) > 1)}</summary><ul>{rows}</ul></details>'


def _contexts(view: FeatureView, name: str) -> str:
    groups = {group: distinct(contexts) for group, contexts in view.contexts.items() if contexts}
    if not groups:
        return '<section class="hs-main"><h3>Contexts</h3><p class="hs-note">No context is recorded: it did not fire.</p></section>'
    inputs, tabs, panels, first = [], [], [], 0
    for number_, (group, contexts) in enumerate(list(groups.items())[:_MOST_TABS]):
        tab = f"{name}-t{number_}"
        inputs.append(_radio(f"{name}-tab", tab, f"hs-pick hs-pick{number_}", number_ == 0))
        amount = f"<small>{len(contexts)}</small>"
        tabs.append(f'<label class="hs-tab hs-tab{number_}" for="{tab}">{text(group)} {amount}</label>')
        rows = context_rows(
            contexts, view.maximum, latent=view.latent, sae_id=view.sae_id, clickable=view.clickable, first_row=first
        )
        panels.append(f'<div class="hs-panel hs-panel{number_}">{rows}</div>')
        first += len(contexts)
    inputs.append(_radio(f"{name}-scale", f"{name}-s0", "hs-pick hs-by-feature", True))
    inputs.append(_radio(f"{name}-scale", f"{name}-s1", "hs-pick hs-by-row", False))
    return (
        f'<section class="hs-main" aria-label="Contexts">{"".join(inputs)}<div class="hs-tabs">{"".join(tabs)}</div>'
        f"{_scale(view, name)}{''.join(panels)}</section>"
    )


_MOST_TABS = 8


def _radio(group: str, name: str, kind: str, checked: bool) -> str:
    return f'<input type="radio" class="{kind}"{attributes(name=group, id=name, checked=checked, autocomplete="off")}>'


def _scale(view: FeatureView, name: str) -> str:
    full = strength(view.maximum, view.tokens_read)
    return (
        f'<div class="hs-scale"><span class="hs-key" aria-hidden="true"></span>'
        f'<span>Full shade: <span class="hs-full-f">{text(full)}</span><span class="hs-full-r">the strongest token of each row</span>'
        f'</span><span class="hs-switch"><label class="hs-s0" for="{name}-s0">per feature</label>'
        f'<label class="hs-s1" for="{name}-s1">per row</label></span></div>'
    )


def _effects(view: FeatureView) -> str:
    if not view.promoted and not view.suppressed and not view.effects_note:
        return ""
    most = max((abs(value) for _, value in (*view.promoted, *view.suppressed)), default=0.0)
    sides = "".join(
        f"<div><h4>{title}</h4>{bars([token for token, _ in side], [value for _, value in side], most=most)}</div>"
        for title, side in (("Promotes", view.promoted), ("Suppresses", view.suppressed))
    )
    note = f'<p class="hs-note">{text(_sentence("logit per unit of activation: " + view.effects_note))}</p>'
    both = f'<div class="hs-sides">{sides}</div>' if view.promoted or view.suppressed else ""
    spread = ""
    if view.logit_counts:
        drawn = histogram(
            view.logit_counts, view.logit_edges, title="Effect on all logits", unit="logit per unit of activation"
        )
        spread = f'<details class="hs-fold"><summary>Effect on all logits</summary>{drawn}</details>'
    return f"<section><h3>Next token</h3>{both}{note if view.effects_note else ''}{spread}</section>"


def _strengths(view: FeatureView) -> str:
    if not view.counts:
        return ""
    drawn = histogram(view.counts, view.edges, title="Activations that are not zero", note=silence(view.density))
    return f"<section><h3>How strongly it fires</h3>{drawn}</section>"


def _related(view: FeatureView) -> str:
    parts = (
        ("Nearest features", "cosine of decoder rows", view.nearest, aligned),
        ("Fires together with", "tokens on which both fire", view.together, count),
    )
    cells = []
    for title, unit, related, shown in parts:
        if related:
            rows = "".join(_related_row(one, view, shown(one.value)) for one in related)
            cells.append(
                f'<section><h3>{title} <small>{unit}</small></h3><ul class="hs-related">{rows}</ul></section>'
            )
    return "".join(cells)


def _related_row(one: RelatedView, view: FeatureView, value: str) -> str:
    words = f'<span class="hs-index">{one.latent:d}</span> '
    words += f"<span>{text(one.label)}</span>" if one.label else '<span class="hs-unlabelled">no label</span>'
    target = handle(words, one.href, view.clickable, data_latent=one.latent, data_sae=view.sae_id)
    return f'<li>{target}<span class="hs-value">{value}</span></li>'


def _about(view: FeatureView) -> str:
    facts = []
    if view.place:
        facts.append(("Reads", place(view.place)))
    if view.place_out and view.place_out != view.place:
        facts.append(("Writes", place(view.place_out)))
    if view.base_model:
        facts.append(("Host", view.base_model))
    width = f"{view.d_sae:,} latents" if view.d_sae else ""
    facts.append(("Autoencoder", ", ".join(part for part in (view.sae_id, view.architecture or "", width) if part)))
    rows = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts)
    return f'<section><h3>Where it lives</h3><dl class="hs-about">{rows}</dl></section>'
