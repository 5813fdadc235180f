"""Features to begin with, from the index alone: no host, no compute."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .records import contexts_of, hit_json


if TYPE_CHECKING:
    from .catalog import Served

LEAST, MOST = 1e-5, 0.05  # share of tokens: neither hardly ever nor everywhere
SHOWN, POOL, LOOKED_AT = 8, 2000, 150
SHORT = 28  # characters of a label that read well in a row of others
LETTERS = 4  # shorter tokens are parts of words more often than not
# the best labels first; without scores, features that promote one token far more than the next
_BY_SCORE = """
SELECT feature FROM features WHERE sae = ? AND density BETWEEN ? AND ? ORDER BY score IS NULL, score DESC, max_act DESC LIMIT ?
"""
_LIVING = "SELECT feature FROM features WHERE sae = ? AND density > 0"


def living(served: Served, sae_id: str) -> list[int]:
    """The features that fired at all."""
    index = served.index.peek()
    return [] if index is None else [number for (number,) in index.store.rows(_LIVING, [index.store.sae[sae_id]])]


def examples(served: Served, sae_id: str) -> list[dict[str, Any]]:
    """Features that are easy to read, as hits: well-labelled ones; without labels, those whose strongest contexts agree."""
    index = served.index.peek()
    if index is None:
        return []
    store = index.store
    numbers = [number for (number,) in store.rows(_BY_SCORE, [store.sae[sae_id], LEAST, MOST, POOL])]
    first = store.start[sae_id]
    hits = {hit.feature: hit for hit in store.hits({first + number: 0.0 for number in numbers}, {})}
    # the sort keeps the better scores first
    scored = sorted((n for n in numbers if hits[n].label_score is not None), key=lambda n: _hard(hits[n].label or ""))[
        :SHOWN
    ]
    others = _agreeing(served, [number for number in numbers if number not in scored]) if len(scored) < SHOWN else []
    chosen = [*scored, *others][:SHOWN]
    return [hit_json(hits[number], contexts_of(served, number)) for number in chosen]


def _hard(label: str) -> tuple[bool, bool]:
    """Whether a label is long, or names parts of words only."""
    quoted = re.findall(r'"([^"]*)"', label)
    return len(label) > SHORT, bool(quoted) and not any(len(token.strip()) >= LETTERS for token in quoted)


def _agreeing(served: Served, numbers: list[int]) -> list[int]:
    """Features whose two strongest contexts peak at one token, no token twice."""
    found: dict[str, int] = {}
    words = 0
    for number in numbers[:: max(1, len(numbers) // LOOKED_AT)]:
        contexts = contexts_of(served, number)
        peaks = {context["tokens"][context["peak"]].strip().lower() for context in contexts}
        if len(contexts) > 1 and len(peaks) == 1 and (token := peaks.pop()).isalpha():
            words += token not in found and len(token) >= LETTERS
            found.setdefault(token, number)
        if words >= SHOWN:
            break
    ordered = [found[token] for token in sorted(found, key=lambda token: len(token) < LETTERS)]
    return ordered[:SHOWN] or numbers[:SHOWN]
