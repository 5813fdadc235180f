"""The table of edits: plain inputs that the page's script reads back as JSON, so that typing never loses the cursor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape

from ..steering.recipes import EditRow, exactly


_WORDS = {
    "add": "add",
    "clamp": "set to",
    "raise": "raise to",
    "scale": "multiply by",
    "ablate": "set to zero",
}
_UNITS = {"max": "× maximum", "norm": "× norm", "latent": "latent units"}
_drawn = itertools.count()  # equal tables are drawn again: the visitor may have changed what the page shows


def edit_table(rows: Sequence[EditRow], labels: Sequence[str | None], maxima: Sequence[float | None]) -> str:
    """The rows as a form; what is in it is escaped.

    Args:
        rows (`list` of [`EditRow`]): the edits.
        labels (`list`), maxima (`list`): of their features, `None` where they are not known.
    """
    drawn = f'data-drawn="{next(_drawn)}"'
    if not rows:
        return (
            f'<p class="hs-app-note" {drawn}>No edits yet. Add a feature by its number, press Steer on a feature page, click a '
            "generated token, or choose a preset.</p>"
        )
    lines = "".join(
        _row(place, row, label, maximum)
        for place, (row, label, maximum) in enumerate(zip(rows, labels, maxima, strict=True))
    )
    return f'<div class="hs-edits" role="table" aria-label="Edits" {drawn}>{lines}</div>'


def _row(place: int, row: EditRow, label: str | None, maximum: float | None) -> str:
    name = f"feature {row.feature}"
    quoted = f"“{label}”" if label else ""
    scale = "" if maximum is None else f' data-max="{maximum:.6g}"'
    when = "" if row.when is None else str(row.when)
    return (
        f'<div class="hs-edit" role="row" data-edit="{place}" data-feature="{row.feature}" data-of="{escape(row.sae, quote=True)}">'
        f'<label class="hs-edit-on"><input type="checkbox" data-field="on"{" checked" if row.on else ""} '
        f'aria-label="{name} on"></label>'
        f'<a class="hs-edit-name" href="?feature={row.feature}" data-latent="{row.feature}" title="{escape(quoted, quote=True)}">'
        f"<b>{row.feature}</b> {escape(quoted)}</a>"
        f'<select data-field="operation" aria-label="what to do with {name}">{_options(_WORDS, row.operation)}</select>'
        f'<input type="number" data-field="strength" value="{exactly(row.strength)}" step="any" aria-label="strength of {name}">'
        f'<select data-field="unit" aria-label="unit of the strength of {name}">{_options(_UNITS, row.unit)}</select>'
        f'<span class="hs-edit-raw"{scale}>{escape(raw_value(row, maximum))}</span>'
        f'<label class="hs-edit-when">only where <input type="number" data-field="when" min="0" step="1" value="{when}" '
        f'placeholder="feature" aria-label="only where this feature fires"> fires</label>'
        f'<button type="button" data-remove="{place}" aria-label="remove {name}">✕</button></div>'
    )


def raw_value(row: EditRow, maximum: float | None) -> str:
    """The strength in latent units, where it is given in maxima."""
    if maximum is None or row.unit != "max" or row.operation in ("scale", "ablate"):
        return ""
    return f"= {row.strength * maximum:.3g}"


def _options(words: Mapping[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{value}"{" selected" if value == chosen else ""}>{said}</option>'
        for value, said in words.items()
    )
