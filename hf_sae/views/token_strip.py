"""A row of tokens, each shaded and underlined by its activation."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ..terminal import visible
from .levels import level, step_class
from .markup import attributes, hidden, text
from .words import number, ordinal


AROUND = 12
_NAMED = 6  # firing tokens that a screen reader is told of
_HEX = re.compile(r"⟨([0-9a-f]{2}(?: [0-9a-f]{2})*)⟩")
_PARTS = re.compile(r"(\n| +)")


@dataclass(frozen=True)
class _Strip:
    tokens: Sequence[str]
    activations: Sequence[float]
    maximum: float | Sequence[float] | None
    token_ids: Sequence[int] | None
    special: Collection[int]
    clickable: bool
    first: int
    latent_ranks: Sequence[int | None] | None
    notes: Sequence[str] | None
    ranks: dict[int, int] = field(init=False)
    row_maximum: float = field(init=False)

    def __post_init__(self) -> None:
        strong = {i: self._size(i) for i, a in enumerate(self.activations) if a and not math.isnan(a)}
        order = sorted(strong, key=lambda i: (-strong[i], i))
        object.__setattr__(self, "ranks", {i: rank for rank, i in enumerate(order, start=1)})
        object.__setattr__(self, "row_maximum", strong[order[0]] if order else 0.0)

    def _size(self, i: int) -> float:
        """How strong a token is: its activation, or its share where each has its own maximum."""
        own = self.maximum[i] if isinstance(self.maximum, Sequence) else 1.0
        return abs(self.activations[i]) / (abs(own) or 1.0)

    def cells(self, start: int, end: int) -> str:
        return "".join(self._token(i) for i in range(start, end))

    def spoken(self) -> str:
        """What shade says, in words."""
        if not self.ranks:
            return "Fires on none of these tokens."
        named = ", ".join(
            f"“{visible(self.tokens[i])}” {number(self.activations[i])}" for i in list(self.ranks)[:_NAMED]
        )
        more = len(self.ranks) - _NAMED
        return f"Fires on {named}{f' and {more} more' if more > 0 else ''}."

    def _token(self, i: int) -> str:
        tip = self._tip(i)
        marks = {"data_position": self.first + i, "title": tip}
        if self.clickable:
            marks |= {"tabindex": 0, "role": "button", "aria_label": tip}
        return (
            f'<span class="{self._classes(i)}"{attributes(**marks)}>{shown(self.tokens[i], i in self.special)}</span>'
        )

    def _classes(self, i: int) -> str:
        names = ["hs-t"]
        activation = self.activations[i]
        full = self.maximum[i] if isinstance(self.maximum, Sequence) else self.maximum or self.row_maximum
        if step := level(activation, full):
            by_row = level(math.copysign(self._size(i), activation), self.row_maximum)
            names += [step_class(step), step_class(by_row, "r")]
        if self.ranks.get(i) == 1:
            names.append("hs-peak")
        return " ".join(names)

    def _tip(self, i: int) -> str:
        cells = [f"“{self.tokens[i]}”"]
        if self.token_ids is not None:
            cells.append(f"id {self.token_ids[i]}")
        cells.append(f"position {self.first + i}")
        if i not in self.ranks:
            return " · ".join([*cells, "special token" if i in self.special else "does not fire"])
        if self.notes is not None:
            return " · ".join([*cells, self.notes[i]])
        cells.append(f"activation {number(self.activations[i])}")
        if self.latent_ranks is not None and self.latent_ranks[i] is not None:
            return " · ".join([*cells, f"rank {self.latent_ranks[i]} among the latents of this token"])
        return " · ".join([*cells, f"strongest {self.ranks[i]} of {len(self.tokens)} here"])


def shown(token: str, special: bool = False) -> str:
    """A token as HTML: pills for special tokens and bytes, ⏎ and a break for a newline, spaces that can be made visible."""
    if special:
        return f'<span class="hs-pill">{text(token) or "∅"}</span>'
    if found := _HEX.fullmatch(token):
        return f'<span class="hs-pill hs-hex">{found[1]}</span>'
    cells = []
    for part in _PARTS.split(token):
        if part == "\n":
            cells.append('<span class="hs-nl">⏎</span>\n')
        elif part.startswith(" "):
            cells.append(f'<span class="hs-sp">{part}</span>')
        else:
            cells.append(text(part))
    return "".join(cells)


def token_strip(
    tokens: Sequence[str],
    activations: Sequence[float],
    *,
    maximum: float | Sequence[float] | None,
    token_ids: Sequence[int] | None = None,
    special: Collection[int] = (),
    peak: int | None = None,
    around: int | None = None,
    whitespace: bool = False,
    clickable: bool = False,
    latent: int | None = None,
    sae_id: str | None = None,
    row: int | None = None,
    first_position: int = 0,
    latent_ranks: Sequence[int | None] | None = None,
    notes: Sequence[str] | None = None,
) -> str:
    """Tokens with the activations of one latent: background, underline and, for the strongest, bold.

    Args:
        tokens (`list` of `str`): their texts; a part of a character is `⟨hex⟩`.
        activations (`list` of `float`): one per token; negative ones are cool and dashed.
        maximum (`float`, or `list` of `float`, *optional*): the activation of full shade, of all tokens or of each; otherwise the
            strongest of these tokens.
        token_ids (`list` of `int`, *optional*): said on hover.
        special (`set` of `int`): which tokens are special ones.
        peak (`int`, *optional*): the token that `around` is about; otherwise the strongest.
        around (`int`, *optional*): so many tokens are shown on each side, the others unfold.
        whitespace (`bool`): show spaces as dots always, not on hover only.
        clickable (`bool`): tokens take the focus; they carry `data-position`.
        latent (`int`, *optional*), sae_id (`str`, *optional*), row (`int`, *optional*): `data-latent`, `data-sae`, `data-row` of the strip.
        first_position (`int`): of the first token.
        latent_ranks (`list` of `int`, *optional*): rank of the latent among those of each token, where it is known.
        notes (`list` of `str`, *optional*): said on hover of tokens that fire, instead of activation and rank.

    Raises:
        ValueError: if the lists differ in length.
    """
    given = [part for part in (activations, token_ids, latent_ranks, notes) if part is not None]
    given += [maximum] if isinstance(maximum, Sequence) else []
    if any(len(part) != len(tokens) for part in given):
        lengths = ", ".join(str(len(part)) for part in given)
        raise ValueError(
            f"{len(tokens)} tokens, and {lengths} activations, ids, ranks, notes or maxima: give one for each token."
        )
    strip = _Strip(tokens, activations, maximum, token_ids, special, clickable, first_position, latent_ranks, notes)
    start, end = 0, len(tokens)
    if around is not None and tokens:
        middle = next(iter(strip.ranks), 0) if peak is None else min(max(peak, 0), end - 1)
        start, end = max(0, middle - around), min(end, middle + around + 1)
    cells = strip.cells(start, end)
    before = _more(strip.cells(0, start), start, "before")
    after = _more(strip.cells(end, len(tokens)), len(tokens) - end, "after")
    marks = attributes(data_latent=latent, data_sae=sae_id, data_row=row)
    kind = "hs hs-strip" + " hs-whitespace" * whitespace
    return f'<div class="{kind}"{marks}>{before}{cells}{after}{hidden(strip.spoken())}</div>'


def _more(cells: str, amount: int, where: str) -> str:
    if not amount:
        return ""
    label = f"Show {ordinal(amount, 'token')} {where}"
    return f'<details class="hs-more"><summary title="{label}" aria-label="{label}">… {amount} more</summary>{cells}</details>'
