"""What a search found: cards that say what, why and how sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contexts import ContextView, context_rows, distinct
from .labels import LabelView, basis, label_line
from .markup import attributes, handle, text
from .words import number, ordinal, rate, strength


_CONTEXTS = 2
_WHY = {
    "label": ("Label", ""),
    "example": ("Fires on text with", ""),
    "promoted token": ("Promotes the token", "logit"),
    "similar meaning": ("Similar meaning", "cosine"),
    "similar spelling": ("Similar spelling", "cosine"),
    "fires here": ("Fires here", "activation"),
    "contrast": ("Differs between the texts", "effect"),
    "direction": ("Points in this direction", "cosine"),
}
SUGGESTIONS = (
    "use one plain word, such as “import”",
    "try what the text itself would say, such as “def” or “Paris”",
    "take filters away: density, score and layer",
)


@dataclass(frozen=True)
class ReasonView:
    """One way in which a latent matched.

    Args:
        kind (`str`): `label`, `example`, `promoted token`, `similar meaning`, `fires here`, `contrast`, `direction`, or other words.
        snippet (`str`): the text that matched.
        spans (`list` of `(int, int)`): start and end of the characters in it that matched.
        value (`float`, *optional*): cosine, logit, activation or effect, whichever the kind has.
    """

    kind: str
    snippet: str = ""
    spans: Sequence[tuple[int, int]] = ()
    value: float | None = None


@dataclass(frozen=True)
class HitView:
    """One latent that was found.

    Args:
        sae_id (`str`), latent (`int`): which.
        label ([`LabelView`], *optional*): its best label.
        density (`float`, *optional*), maximum (`float`, *optional*): how often and how strongly it fires.
        score (`float`, *optional*): what hits are sorted by.
        score_name (`str`): what the score is.
        reasons (`list` of [`ReasonView`]): why it was found, strongest first.
        contexts (`list` of [`ContextView`]): its strongest; two are shown.
        href (`str`, *optional*): its page.
        clickable (`bool`): the page listens for clicks.
    """

    sae_id: str
    latent: int
    label: LabelView | None = None
    density: float | None = None
    maximum: float | None = None
    score: float | None = None
    score_name: str = "match"
    reasons: Sequence[ReasonView] = ()
    contexts: Sequence[ContextView] = ()
    href: str | None = None
    clickable: bool = False


def hit_card(hit: HitView) -> str:
    """A card: label, why it was found, the strongest contexts, how often it fires.

    Args:
        hit ([`HitView`]): what to show.
    """
    head = f'<span class="hs-index">{hit.latent:d}</span> {label_line(hit.label)}'
    head = handle(head, hit.href, hit.clickable, data_latent=hit.latent, data_sae=hit.sae_id)
    why = "".join(f"<li>{_why(reason)}</li>" for reason in hit.reasons)
    why = f'<ul class="hs-why" aria-label="Why it was found">{why}</ul>' if why else ""
    shown = distinct(hit.contexts)[:_CONTEXTS]
    rows = context_rows(shown, hit.maximum, latent=hit.latent, sae_id=hit.sae_id) if shown else ""
    facts = [rate(hit.density)]
    facts += [strength(hit.maximum, None)] if hit.maximum is not None else []
    facts += [f"{hit.score_name} {number(hit.score)}"] if hit.score is not None else []
    facts += [basis(hit.label)] if hit.label is not None else []
    facts += [hit.sae_id] if hit.sae_id else []
    foot = "".join(f"<li>{text(fact)}</li>" for fact in facts)
    marks = attributes(data_latent=hit.latent, data_sae=hit.sae_id)
    return f'<article class="hs hs-card"{marks}><h3>{head}</h3>{why}{rows}<ul class="hs-facts">{foot}</ul></article>'


def hit_list(
    hits: Sequence[HitView], *, query: str = "", suggestions: Sequence[str] = SUGGESTIONS, clickable: bool = False
) -> str:
    """Cards in order; where nothing was found, what to try instead.

    Args:
        hits (`list` of [`HitView`]): best first.
        query (`str`): what was looked for.
        suggestions (`list` of `str`): for an empty result; three are shown.
        clickable (`bool`): offer `search raw examples instead` as a button (`data-action="search-examples"`).
    """
    if hits:
        cards = "".join(f"<li>{hit_card(hit)}</li>" for hit in hits)
        amount = ordinal(len(hits), "feature")
        return f'<section class="hs hs-hits"><p class="hs-note">{amount}, best first.</p><ol>{cards}</ol></section>'
    what = f"No feature was found for “{text(query)}”." if query else "No feature was found."
    rows = "".join(f"<li>{text(one)}</li>" for one in suggestions[:3])
    instead = handle("Search raw examples instead", None, clickable, data_action="search-examples", data_query=query)
    return f'<section class="hs hs-hits hs-empty"><p><strong>{what}</strong> You can:</p><ul>{rows}</ul><p>{instead}</p></section>'


def _why(reason: ReasonView) -> str:
    name, unit = _WHY.get(reason.kind, (reason.kind, ""))
    value = f' <span class="hs-value">{unit} {number(reason.value)}</span>' if reason.value is not None else ""
    quoted = f' <span class="hs-quote">{_marked(reason)}</span>' if reason.snippet else ""
    return f'<span class="hs-kind">{text(name)}</span>{quoted}{value}'


def _marked(reason: ReasonView) -> str:
    """The snippet with what matched marked; spans that overlap or lie outside are cut to what is left."""
    cells, place = [], 0
    for start, end in sorted(reason.spans):
        start, end = max(start, place), min(end, len(reason.snippet))
        if start < end:
            cells += [text(reason.snippet[place:start]), f"<mark>{text(reason.snippet[start:end])}</mark>"]
            place = end
    return "".join([*cells, text(reason.snippet[place:])])
