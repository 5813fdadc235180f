"""What a search found, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


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
