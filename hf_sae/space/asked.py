"""A steering request as the address of the page, and the edits of its hidden box."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..steering.recipes import EditRow
from . import limits
from .limits import RequestError
from .links import MAX_LINK_TEXT, Link
from .steering import POSITIONS, Ask


def address(ask: Ask, sae: str) -> str:
    """The query of a link that brings the request back; what is as by default is left out."""
    plain = Ask("", ())
    given = {name: getattr(ask, name) for name in OPTIONS if name != "sweep"}
    options = {name: value for name, value in given.items() if value != getattr(plain, name)}
    if ask.sweep:
        options["sweep"] = True
    prompt = str(ask.prompt or "")[:MAX_LINK_TEXT]
    edits = tuple(_short(row) for row in ask.edits)
    return Link(tab="steer").at(sae=sae, prompt=prompt, edits=edits, options=options).query()


def options_of(link: Link) -> dict[str, Any]:
    """The options of a link that can be; others are left out, so that they leave the page as it is."""
    found = {}
    for name, value in link.options.items():
        try:
            found[name] = _CHECKS[name](value)
        except (KeyError, RequestError):
            continue
    return found


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{limits.shown(value)} is neither true nor false.")
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "max_new_tokens": lambda value: limits.whole(value, "max_new_tokens", 1, limits.MAX_NEW_TOKENS),
    "temperature": lambda value: limits.real(value, "temperature", 0, 2),
    "top_p": lambda value: limits.real(value, "top_p", 0.05, 1),
    "seed": lambda value: limits.whole(value, "seed", 0, 2**31 - 1),
    "sweep": _switch,
    "ablation": _switch,
    "instruction": lambda value: limits.text(value, "instruction", limits.MAX_QUERY, empty=True),
    "positions": lambda value: limits.one_of(value, "positions", POSITIONS),
    "chat": _switch,
}
OPTIONS = tuple(_CHECKS)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    usual = EditRow(0).to_json()
    return {key: value for key, value in row.items() if key in ("feature", "strength") or usual.get(key, row) != value}


def rows_of(edits: str) -> list[dict[str, Any]]:
    """The edits of the hidden box; what is no list of them is none."""
    try:
        found = json.loads(edits or "[]")
    except (ValueError, RecursionError):
        return []
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
