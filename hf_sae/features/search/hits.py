"""What a search found, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...terminal import WIDTH, shorten, visible
from ...views.words import rate


_K = 60  # of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (SIGIR 2009)


@dataclass(frozen=True)
class Reason:
    """One way in which a feature matched.

    Args:
        kind (`str`): `label`, `example`, `promoted token`, `similar meaning`, …
        snippet (`str`): the text that matched.
        spans (`list` of `(int, int)`): start and end of the matching characters in it.
        value (`float`, *optional*): cosine, logit, activation or effect, whichever the kind has.
    """

    kind: str
    snippet: str
    spans: tuple[tuple[int, int], ...] = ()
    value: float | None = None


@dataclass(frozen=True)
class Hit:
    """One feature that was found.

    Args:
        sae_id (`str`), feature (`int`): which.
        score (`float`): what hits are sorted by; comparable within one result only.
        reasons (`list` of [`Reason`]): why, strongest first.
        label (`str`, *optional*), label_method (`str`, *optional*), label_score (`float`, *optional*): its best-scored label.
        density (`float`): share of the tokens on which it fires.
        max_act (`float`): its strongest activation.
    """

    sae_id: str
    feature: int
    score: float
    reasons: tuple[Reason, ...]
    label: str | None
    label_method: str | None
    label_score: float | None
    density: float
    max_act: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Hits(list[Hit]):
    """Features that were found, best first: a list that prints one line each and renders as cards in a notebook."""

    def __str__(self) -> str:
        return "\n".join(map(_line, self)) or "No feature was found."

    def _repr_html_(self) -> str:
        from ...views import hit_list, notebook
        from ..showing import hit_view

        return notebook(hit_list([hit_view(hit) for hit in self]))


def _line(hit: Hit) -> str:
    why = f"  {hit.reasons[0].kind}: {visible(hit.reasons[0].snippet)}" if hit.reasons else ""
    name = "no label" if hit.label is None else f'"{visible(hit.label)}"'
    return shorten(f"{visible(hit.sae_id)} {hit.feature}  {name}  {rate(hit.density)}{why}", WIDTH)


def fuse(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Reciprocal rank fusion: the sum of `1 / (60 + rank)` over the rankings that name an item, best first.

    Equal sums are sorted by item.

    Args:
        rankings: each a list of items, best first, no item twice.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (_K + rank)
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))
