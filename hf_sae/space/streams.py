"""Steered texts and the features of one generated token, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..views import StreamView, stream_columns
from .records import Json
from .steering import Ask


if TYPE_CHECKING:
    from ..steering import Stream


def columns(streams: Sequence[Stream], ask: Ask) -> str:
    """The texts side by side, the sweep smaller below them."""
    from ..steering.engine import diverges_at

    baseline = streams[0]
    return stream_columns(
        [_view(stream, None if stream is baseline else diverges_at(stream, baseline)) for stream in streams],
        clickable=True,
    )


def _view(stream: Stream, place: int | None) -> StreamView:
    gauge = stream.coherence
    measured = any(token.kl for token in stream.tokens)
    return StreamView(
        stream.name,
        [token.text for token in stream.tokens],
        stream.prompt,
        [token.id for token in stream.tokens],
        kl=[token.kl for token in stream.tokens] if measured else None,
        perplexity=None if gauge is None else gauge.perplexity,
        coherence=None if gauge is None else gauge.word,
        state=stream.state,
        note=stream.note if stream.state == "failed" else "",
        diverges_at=place,
        small=stream.name.endswith("×"),
    )


def token_features(token: Json, labels: Sequence[str | None]) -> str:
    """The strongest features of a generated token, each with a button that adds it to the edits."""
    if not token["latents"]:
        return '<p class="hs-app-note">Nothing is known of this token yet: its features come one step after it.</p>'
    lines = "".join(_feature(one, label) for one, label in zip(token["latents"], labels, strict=True))
    return (
        f'<p class="hs-app-note">Strongest features at “{escape(token["text"])}”:</p><ul class="hs-found">{lines}</ul>'
    )


def _feature(one: Json, label: str | None) -> str:
    number: Any = int(one["latent"])
    said = f" “{escape(label)}”" if label else ""
    return (
        f'<li><button type="button" data-add="{number}" data-of="{escape(str(one["sae"]), quote=True)}">add to edits</button>'
        f'<a href="?feature={number}" data-latent="{number}"><b>{number}</b>{said}</a><span>{one["activation"]:.3g}</span></li>'
    )
