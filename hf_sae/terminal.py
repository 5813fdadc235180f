"""Token strips in a terminal: shaded where there is colour, bracketed with a digit where there is none.

Tokens are data. Whatever could move the cursor, change colours or reverse the direction of writing is shown as an escape.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TextIO

from .shades import INK, shade, terminal_colour, text_on


WIDTH = 80
WINDOW = 12
_VISIBLE = {"\n": "⏎", "\t": "→"}
_RESET = "\x1b[0m"
_FAINT = 0.05  # below this share of full strength a token counts as not shaded


def has_colour(stream: TextIO | None = None) -> bool:
    """Whether colours make sense on `stream` (default: standard output): a terminal, and `NO_COLOR` is not set."""
    stream = sys.stdout if stream is None else stream
    allowed = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return allowed and hasattr(stream, "isatty") and stream.isatty()


def visible(text: str) -> str:
    """`text` with newlines as ⏎, tabs as → and every other character that does not print as its escape."""
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else _escape(c)) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns(text: str) -> int:
    """How many columns `text` takes in a terminal; colour codes take none, East Asian wide characters two."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    marks = sum(unicodedata.combining(c) != 0 for c in plain)
    return len(plain) - marks + sum(unicodedata.east_asian_width(c) in "WF" for c in plain)


def shorten(text: str, width: int) -> str:
    """`text` cut to `width` columns, with … where something is missing."""
    if columns(text) <= width:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) > width - 1:
            break
        kept += character
    return kept + "…"


@dataclass(frozen=True)
class Strip:
    """Tokens shaded by one activation each; `str()` is what a terminal shows.

    Args:
        tokens (`list` of `str`): their texts.
        activations (`list` of `float`): one per token; negative ones of signed latents are cool.
        maximum (`float`, *optional*): the activation of full strength; otherwise the strongest of these tokens.
        peak (`int`, *optional*): only the tokens around this one are shown.
        window (`int`): so many on each side of the peak.
        special (`set` of `int`): positions of special tokens, which are set in ⟨ ⟩.
        colour (`bool`, *optional*): shade; otherwise as [`has_colour`] finds.
        width (`int`): columns.
    """

    tokens: Sequence[str]
    activations: Sequence[float]
    maximum: float | None = None
    peak: int | None = None
    window: int = WINDOW
    special: Collection[int] = ()
    colour: bool | None = None
    width: int = WIDTH

    def __str__(self) -> str:
        start, end = self._range()
        colour = has_colour() if self.colour is None else self.colour
        full = abs(self.maximum or 0) or max((abs(a) for a in self.activations), default=0) or 1.0
        strongest = max(range(start, end), key=lambda i: abs(self.activations[i]), default=None)
        cells = ["… "] if start > 0 else []
        for i in range(start, end):
            text = visible(self.tokens[i])
            text = f"⟨{text}⟩" if i in self.special else text
            cells.append((_shaded if colour else _marked)(text, self.activations[i] / full, i == strongest))
        return _wrap([*cells, " …"] if end < len(self.tokens) else cells, self.width)

    def _range(self) -> tuple[int, int]:
        if self.peak is None:
            return 0, len(self.tokens)
        return max(0, self.peak - self.window), min(len(self.tokens), self.peak + self.window + 1)


def _shaded(text: str, share: float, strongest: bool) -> str:
    if abs(share) < _FAINT:
        return text
    number, seen = terminal_colour(shade(share))
    ink = 16 if text_on(seen) == INK else 231
    # colour never speaks alone: underlined is active, bold is strongest
    return f"\x1b[48;5;{number};38;5;{ink};4{';1' if strongest else ''}m{text}{_RESET}"


def _marked(text: str, share: float, strongest: bool) -> str:
    if abs(share) < _FAINT:
        return text
    digit = min(round(abs(share) * 9), 9)
    return f"[{text}]{'-' if share < 0 else ''}{digit}{'*' if strongest else ''}"


def _wrap(cells: Sequence[str], width: int) -> str:
    lines, line, used = [], "", 0
    for cell in cells:
        size = columns(cell)
        if used and used + size > width:
            lines.append(line)
            line, used = "", 0
        line, used = line + cell, used + size
    return "\n".join([*lines, line])
