"""Texts that are being generated, side by side: where they part, and how fluent they still are."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .charts import line
from .levels import level, step_class
from .markup import attributes, hidden, text
from .token_strip import shown
from .words import number, ordinal


_STATES = {"waiting": "waiting", "running": "writing", "done": "done", "stopped": "stopped", "failed": "failed"}
_SIGNS = {"waiting": "○", "running": "●", "done": "✓", "stopped": "■", "failed": "✗"}
_GAUGE = {"broken": 1, "drifting": 2, "repeating": 2, "fluent": 3}  # boxes of three that are full


@dataclass(frozen=True)
class StreamView:
    """One text that is being generated.

    Args:
        name (`str`): of the variant.
        tokens (`list` of `str`): what was generated so far.
        prompt (`str`): what it continues; shown where it differs from the first stream's.
        token_ids (`list` of `int`, *optional*): said on hover.
        special (`set` of `int`): positions of special tokens.
        activations (`list` of `float`, *optional*), maximum (`float`, *optional*): of one latent, for shade.
        kl (`list` of `float`, *optional*): nats per token between what was sampled from and the host without edits.
        perplexity (`float`, *optional*): of the text under the host without edits.
        coherence (`str`, *optional*): `fluent`, `repeating`, `drifting` or `broken`.
        state (`str`): `waiting`, `running`, `done`, `stopped` or `failed`.
        note (`str`): why it ended or failed.
        diverges_at (`int`, *optional*): the first token that differs from the baseline.
        strength (`str`): of the edits, in words, such as `2 × maximum (raw 24.8)`.
        small (`bool`): one of a sweep of strengths, set smaller below the others.
        chosen (`int`, *optional*): the token that was clicked.
    """

    name: str
    tokens: Sequence[str] = ()
    prompt: str = ""
    token_ids: Sequence[int] | None = None
    special: Collection[int] = ()
    activations: Sequence[float] | None = None
    maximum: float | None = None
    kl: Sequence[float | None] | None = None
    perplexity: float | None = None
    coherence: str | None = None
    state: str = "running"
    note: str = ""
    diverges_at: int | None = None
    strength: str = ""
    small: bool = False
    chosen: int | None = None


def stream_columns(streams: Sequence[StreamView], *, clickable: bool = False) -> str:
    """Columns of generated text, one below the other on a phone; small ones in a row of their own.

    Tokens carry `data-position`, columns `data-row`.

    Args:
        streams (`list` of [`StreamView`]): the baseline first.
        clickable (`bool`): tokens take the focus.
    """
    if not streams:
        return '<section class="hs hs-streams"><p class="hs-note">Nothing is generated yet.</p></section>'
    most = max((k for s in streams for k in s.kl or () if k is not None and math.isfinite(k)), default=0.0)
    first = streams[0].prompt
    parts = []
    for small in (False, True):
        cells = [
            _column(stream, row, most, clickable, stream.prompt != first or row == 0)
            for row, stream in enumerate(streams)
            if stream.small is small
        ]
        if cells:
            parts.append(f'<div class="hs-row{" hs-small" if small else ""}">{"".join(cells)}</div>')
    return f'<section class="hs hs-streams" aria-label="Generated texts">{"".join(parts)}</section>'


def _column(stream: StreamView, row: int, most: float, clickable: bool, prompt: bool) -> str:
    state = stream.state if stream.state in _STATES else "waiting"
    strength = f' <span class="hs-strength">{text(stream.strength)}</span>' if stream.strength else ""
    head = (
        f'<h3>{text(stream.name)}{strength}</h3><span class="hs-state hs-is-{state}"><span aria-hidden="true">{_SIGNS[state]}</span> '
        f"{_STATES[state]}</span>"
    )
    before = f'<span class="hs-prompt">{shown(stream.prompt)}</span>' if prompt and stream.prompt else ""
    cells = "".join(_token(stream, i, clickable) for i in range(len(stream.tokens)))
    caret = '<span class="hs-caret" aria-hidden="true"></span>' if state == "running" else ""
    note = f'<p class="hs-note">{text(stream.note)}</p>' if stream.note else ""
    return (
        f'<article class="hs-stream"{attributes(data_row=row, aria_busy="true" if state == "running" else None)}><header>{head}</header>'
        f'<div class="hs-text">{before}{cells}{caret}</div>{_difference(stream, row)}{_kl(stream, most)}{_gauge(stream)}{note}</article>'
    )


def _token(stream: StreamView, i: int, clickable: bool) -> str:
    kinds, tip = ["hs-t"], [f"“{stream.tokens[i]}”"]
    if stream.token_ids is not None:
        tip.append(f"id {stream.token_ids[i]}")
    tip.append(f"position {i}")
    if stream.activations is not None and i < len(stream.activations):
        activation = stream.activations[i]
        full = stream.maximum or max((abs(a) for a in stream.activations if not math.isnan(a)), default=0.0)
        if step := level(activation, full):
            kinds.append(step_class(step))
            tip.append(f"activation {number(activation)}")
    if stream.kl is not None and i < len(stream.kl) and stream.kl[i] is not None:
        tip.append(f"KL {number(stream.kl[i])} nats")
    sign = ""
    if i == stream.diverges_at:
        kinds.append("hs-diverges")
        tip.append("first token that differs from the baseline")
        sign = hidden(" [differs from here] ")
    if i == stream.chosen:
        kinds.append("hs-chosen")
    words = " · ".join(tip)
    marks = {"data_position": i, "title": words}
    if clickable:
        marks |= {"tabindex": 0, "role": "button", "aria_label": words}
    return f'{sign}<span class="{" ".join(kinds)}"{attributes(**marks)}>{shown(stream.tokens[i], i in stream.special)}</span>'


def _difference(stream: StreamView, row: int) -> str:
    if row == 0 or not stream.tokens:
        return ""
    if stream.diverges_at is None:
        return '<p class="hs-note">Same as the baseline so far.</p>' if stream.state != "failed" else ""
    return f'<p class="hs-note">Differs from token {stream.diverges_at + 1} on.</p>'


def _kl(stream: StreamView, most: float) -> str:
    known = [k for k in stream.kl or () if k is not None and not math.isnan(k)]
    if not known or max(known) == 0:
        return ""
    label = f"KL to the host without edits: mean {number(sum(known) / len(known))}, most {number(max(known))} nats per token"
    drawn = line(list(stream.kl or ()), most=most, label=label, mark=stream.diverges_at)
    return f'<div class="hs-kl">{drawn}<p class="hs-note">{label}</p></div>'


def _gauge(stream: StreamView) -> str:
    """How fluent, in a word, with as many of three boxes full, so that colour is not needed."""
    if stream.coherence is None and stream.perplexity is None:
        return ""
    word = stream.coherence or ""
    full = _GAUGE.get(word, 0)
    boxes = f'<span class="hs-boxes" aria-hidden="true">{"■" * full}{"□" * (3 - full)}</span> ' if full else ""
    kind = f" hs-is-{word}" if full else ""
    perplexity = f"perplexity {number(stream.perplexity)}" if stream.perplexity is not None else ""
    words = f"<strong>{text(word)}</strong> " if word else ""
    over = f" over {ordinal(len(stream.tokens), 'token')}" if perplexity else ""
    return f'<p class="hs-gauge{kind}">{boxes}{words}<span>{perplexity}{over}</span></p>'
