"""A steering request as the address of the page, and the edits of its hidden box."""

from __future__ import annotations

import json
from typing import Any

from ..steering.recipes import EditRow
from .links import MAX_LINK_TEXT, Link
from .steering import Ask


OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed", "sweep", "ablation", "instruction", "positions", "chat")


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
