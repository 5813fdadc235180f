"""Histograms, bar lists and lines, as inline SVG and plain boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .markup import attributes, text
from .token_strip import shown
from .words import aligned, count, number


WIDTH, HEIGHT = 320, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 30
_FLOOR = 0.5  # where a log axis starts, so that a bin of one is seen


def histogram(
    counts: Sequence[float],
    edges: Sequence[float],
    *,
    title: str = "Histogram of activations",
    unit: str = "activation",
    log: bool = True,
    note: str = "",
) -> str:
    """Bars of counts, as SVG with a title and a description in words.

    Args:
        counts (`list` of `int`): one per bin.
        edges (`list` of `float`): of the bins, one more than counts, ascending.
        title (`str`): what is counted.
        unit (`str`): of the horizontal axis.
        log (`bool`): logarithmic vertical axis, from half a count; otherwise linear from 0.
        note (`str`): a sentence below, such as the share of zeros.

    Raises:
        ValueError: if the lists do not fit.
    """
    below = f'<p class="hs-note">{text(note)}</p>' if note else ""
    if not counts:
        return f'<div class="hs hs-figure"><p class="hs-note">{text(title)}: nothing to show.</p>{below}</div>'
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} counts and {len(edges)} edges: give one edge more than counts.")
    amounts = [max(float(c), 0.0) if math.isfinite(c) else 0.0 for c in counts]
    ends = [float(e) if math.isfinite(e) else 0.0 for e in edges]
    most, total = max(amounts), sum(amounts)
    words = (
        f"{title}: {count(total)} values from {number(ends[0])} to {number(ends[-1])}, most ({count(most)}) between "
        f"{_range(ends, amounts.index(most))}, {'logarithmic' if log else 'linear'} axis."
    )
    body = "".join([_grid(most, log), _bars(amounts, ends, log), _axis(ends, unit)])
    return (
        f'<div class="hs hs-figure"><svg class="hs-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"{attributes(aria_label=words)}>'
        f"<title>{text(title)}</title><desc>{text(words)}</desc>{body}</svg>{below}</div>"
    )


def bar_height(amount: float, most: float, log: bool, height: float) -> float:
    """How high a bar is, where the highest is `height`.

    Args:
        amount (`float`), most (`float`): of this bin and of the fullest.
        log (`bool`): on a logarithmic axis that starts at half a count.
        height (`float`): of the fullest.
    """
    if amount <= 0 or most <= 0:
        return 0.0
    if not log:
        return height * amount / most
    span = math.log(max(most, 1.0) / _FLOOR)
    return height * max(math.log(max(amount, _FLOOR) / _FLOOR), 0.0) / span


def _bars(amounts: list[float], ends: list[float], log: bool) -> str:
    low, span, most = ends[0], (ends[-1] - ends[0]) or 1.0, max(amounts)
    inner, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    cells = []
    for i, amount in enumerate(amounts):
        if not amount:
            continue
        x, right = (_LEFT + inner * (ends[i + k] - low) / span for k in (0, 1))
        high = bar_height(amount, most, log, tall)
        kind = "hs-bar-n" if ends[i + 1] <= 0 else "hs-bar-p"
        tip = f"{_range(ends, i)}: {count(amount)}"
        wide = max(right - x - 0.6, 0.6)
        cells.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{_TOP + tall - high:.1f}" width="{wide:.1f}" height="{high:.1f}">'
            f"<title>{text(tip)}</title></rect>"
        )
    return "".join(cells)


def _range(ends: Sequence[float], i: int) -> str:
    return f"{number(ends[i])} and {number(ends[i + 1])}"


def _grid(most: float, log: bool) -> str:
    tall = HEIGHT - _TOP - _BOTTOM
    ticks = [10.0**k for k in range(int(math.log10(most)) + 1)] if log and most >= 1 else [most]
    ticks = ticks if len(ticks) <= 4 else ticks[:: math.ceil(len(ticks) / 4)]
    cells = []
    for tick in ticks:
        y = _TOP + tall - bar_height(tick, most, log, tall)
        cells.append(
            f'<line class="hs-rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="hs-tick" x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    return "".join(cells)


def _tick(value: float) -> str:
    return count(value).replace(".0", "") if value >= 1000 else number(value)


def _axis(ends: list[float], unit: str) -> str:
    base, inner, span = HEIGHT - _BOTTOM, WIDTH - _LEFT - _RIGHT, (ends[-1] - ends[0]) or 1.0
    places = [(_LEFT, "start", ends[0]), (WIDTH - _RIGHT, "end", ends[-1])]
    cells = [f'<line class="hs-base" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>']
    zero = -ends[0] / span
    if 0 < zero < 1:
        x = _LEFT + inner * zero
        cells.append(f'<line class="hs-base" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
        if 0.1 < zero < 0.9:
            places.append((x, "middle", 0.0))
    for x, anchor, value in places:
        cells.append(
            f'<text class="hs-tick" x="{x:.1f}" y="{base + 12}" text-anchor="{anchor}">{number(value)}</text>'
        )
    middle = _LEFT + inner / 2
    cells.append(f'<text class="hs-tick" x="{middle:.1f}" y="{base + 25}" text-anchor="middle">{text(unit)}</text>')
    return "".join(cells)


def bars(tokens: Sequence[str], values: Sequence[float], *, most: float | None = None, empty: str = "None.") -> str:
    """Tokens with a bar each, as long as its value is large; negative ones are cool.

    Args:
        tokens (`list` of `str`): their texts.
        values (`list` of `float`): one per token.
        most (`float`, *optional*): the value of a full bar; otherwise the largest of these, by size.
        empty (`str`): said where there are none.

    Raises:
        ValueError: if the lists differ in length.
    """
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens and {len(values)} values: give one value for each token.")
    if not tokens:
        return f'<div class="hs"><p class="hs-note">{text(empty)}</p></div>'
    full = (
        (abs(most) if most and math.isfinite(most) else 0.0)
        or max((abs(v) for v in values if math.isfinite(v)), default=0.0)
        or 1.0
    )
    rows = []
    for token, value in zip(tokens, values, strict=True):
        share = 0.0 if math.isnan(value) else min(abs(value) / full, 1.0)
        kind = "hs-bar hs-bar-n" if value < 0 else "hs-bar hs-bar-p"
        rows.append(
            f'<li><code class="hs-token">{shown(token)}</code>'
            f'<span class="hs-track"><span class="{kind}" style="width:{100 * share:.1f}%"></span></span>'
            f'<span class="hs-value">{aligned(value)}</span></li>'
        )
    return f'<div class="hs"><ul class="hs-bars hs-whitespace">{"".join(rows)}</ul></div>'


def line(values: Sequence[float | None], *, most: float, label: str, mark: int | None = None) -> str:
    """A thin line over the tokens of a stream, as wide as its column.

    Args:
        values (`list` of `float`): one per token; the line stops where there is none.
        most (`float`): the value at the top.
        label (`str`): what it shows, in words.
        mark (`int`, *optional*): a position with a vertical rule.
    """
    wide, tall = 300, 28
    step = wide / max(len(values) - 1, 1)
    runs: list[list[str]] = [[]]
    for i, value in enumerate(values):
        if value is None or math.isnan(value):
            runs.append([])
            continue
        share = min(max(value, 0.0) / most, 1.0) if most > 0 else 0.0
        runs[-1].append(f"{i * step:.1f},{tall - 2 - (tall - 4) * share:.1f}")
    lines = "".join(f'<polyline points="{" ".join(run * (2 if len(run) == 1 else 1))}"/>' for run in runs if run)
    rule = ""
    if mark is not None and 0 <= mark < len(values):
        rule = f'<line class="hs-first" x1="{mark * step:.1f}" x2="{mark * step:.1f}" y1="0" y2="{tall}"/>'
    return (
        f'<svg class="hs-line" viewBox="0 0 {wide} {tall}" preserveAspectRatio="none" role="img"{attributes(aria_label=label)}>'
        f"<title>{text(label)}</title>{rule}{lines}</svg>"
    )
