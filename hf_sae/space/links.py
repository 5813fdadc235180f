"""The state of the page as the query of its address, and back: a link needs nothing that a server remembers.

What is read from an address is bounded, and what does not make sense is left out: a link never fails.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from .limits import MAX_FEATURE, MAX_NAME, MAX_QUERY


TABS = ("explore", "search", "inspect", "steer", "about")
MODES = ("words", "prompt", "contrast", "promoted")
MAX_LINK_TEXT = 2000  # characters of a text in an address: browsers and proxies cut longer ones
MAX_EDITS = 32


@dataclass(frozen=True)
class Link:
    """What a page shows.

    Args:
        tab (`str`): `explore`, `search`, `inspect`, `steer` or `about`.
        sae (`str`): name of the autoencoder; `""` is the first that is served.
        feature (`int`, *optional*): its latent.
        q (`str`), mode (`str`): what is searched, and how: `words`, `prompt`, `contrast` or `promoted`.
        against (`str`): the other side of a contrast.
        prompt (`str`): the text to inspect or to steer.
        edits (`tuple` of `dict`): of steering, as JSON values.
        options (`dict`): of steering, as plain values.
    """

    tab: str = "explore"
    sae: str = ""
    feature: int | None = None
    q: str = ""
    mode: str = "words"
    against: str = ""
    prompt: str = ""
    edits: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def query(self) -> str:
        """As the query of an address, without `?`; what is as by default is left out."""
        plain = Link()
        pairs = [(name, getattr(self, name)) for name in _ORDER if getattr(self, name) != getattr(plain, name)]
        if self.edits:
            pairs.append(("edits", json.dumps(list(self.edits), separators=(",", ":"), ensure_ascii=False)))
        if self.options:
            pairs.append(("options", json.dumps(self.options, separators=(",", ":"), ensure_ascii=False)))
        return urlencode([(name, str(value)) for name, value in pairs], quote_via=quote, errors="surrogatepass")

    def at(self, **changes: Any) -> Link:
        """The same with some parts changed, as bounded as one that is read from an address."""
        return _bounded(replace(self, **changes))


_ORDER = ("tab", "sae", "feature", "q", "mode", "against", "prompt")


def read_link(query: str | Mapping[str, str]) -> Link:
    """The state that a query names; unknown keys and impossible values are left out.

    Args:
        query (`str` or `Mapping`): with or without `?`.
    """
    if isinstance(query, str):
        try:
            given = dict(parse_qsl(query.removeprefix("?")[:100_000], errors="surrogatepass", max_num_fields=64))
        except ValueError:
            given = {}
    else:
        given = {str(key): str(value) for key, value in query.items()}
    feature = given.get("feature", "")
    return _bounded(
        Link(
            tab=given.get("tab", ""),
            sae=given.get("sae", ""),
            feature=int(feature) if feature.isascii() and feature.isdigit() and len(feature) <= 10 else None,
            q=given.get("q", ""),
            mode=given.get("mode", ""),
            against=given.get("against", ""),
            prompt=given.get("prompt", ""),
            edits=_edits(given.get("edits", "")),
            options=next(iter(_edits(f"[{given['options']}]")), {}) if "options" in given else {},
        )
    )


def _bounded(link: Link) -> Link:
    number = link.feature
    return Link(
        tab=link.tab if link.tab in TABS else "explore",
        sae=link.sae[:MAX_NAME],
        feature=number if number is not None and 0 <= number <= MAX_FEATURE else None,
        q=link.q[:MAX_QUERY],
        mode=link.mode if link.mode in MODES else "words",
        against=link.against[:MAX_QUERY],
        prompt=link.prompt[:MAX_LINK_TEXT],
        edits=tuple(link.edits[:MAX_EDITS]),
        options=link.options if _flat(link.options) and len(link.options) <= MAX_EDITS else {},
    )


def _edits(value: str) -> tuple[dict[str, Any], ...]:
    """JSON objects of plain values; what they mean is checked where they are used."""
    if not value or len(value) > 10_000:
        return ()
    try:
        found = json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(found, list) or not all(isinstance(edit, dict) and _flat(edit) for edit in found):
        return ()
    return tuple(found[:MAX_EDITS])


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _flat(edit: dict[str, Any]) -> bool:
    plain = all(value is None or isinstance(value, str | int | float | bool) for value in edit.values())
    return plain and all(math.isfinite(value) for value in edit.values() if isinstance(value, float))
