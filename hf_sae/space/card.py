"""The About page: facts, figures of the evaluation, and the card as its author wrote it, without anything that could act."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

from .plain_html import plain_html


if TYPE_CHECKING:
    from .catalog import Served

MAX_CARD = 200_000  # characters of a card that are shown
_FACTS = {
    "architecture": "Architecture",
    "hook_in": "Reads",
    "hook_out": "Writes",
    "d_in": "Width of the place",
    "d_sae": "Latents",
    "k": "Active per token",
    "base_model": "Host",
    "base_revision": "Revision of the host",
}


def about(served: Served) -> str:
    """HTML about one autoencoder."""
    readme = served.readme
    return (
        f"<h2>{escape(served.name)}</h2>{_status(served)}{_table(_facts(served))}{_figures(served)}{_collected(served)}"
        f'<h3>Card</h3><div class="hs-app-card">{render(readme) if readme else "<p>It has no card.</p>"}</div>'
    )


def render(readme: str) -> str:
    """Markdown as HTML in which nothing acts: pictures become their descriptions, links open elsewhere."""
    from markdown_it import MarkdownIt

    body = re.sub(r"\A---\n.*?\n---\n", "", readme[:MAX_CARD], flags=re.DOTALL)
    return plain_html(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


def _status(served: Served) -> str:
    notes = [part.words for part in (served.features, served.index, served.machine) if part.words]
    return "".join(f'<p class="hs-app-note">{escape(note)}</p>' for note in notes)


def _facts(served: Served) -> list[tuple[str, str]]:
    facts = served.facts
    return [(words, _shown(facts[key])) for key, words in _FACTS.items() if facts.get(key) is not None]


def _figures(served: Served) -> str:
    """What the last evaluation measured."""
    metrics = served.facts.get("metrics")
    rows = [(name, f"{value:.4g}") for name, value in metrics.items()] if isinstance(metrics, dict) else []
    return f"<h3>Evaluation</h3>{_table(rows)}" if rows else ""


def _collected(served: Served) -> str:
    """What text the feature dataset was made from."""
    found = served.features.peek()
    if found is None:
        return ""
    source, data = found.dataset.saes[found.sae_id], found.dataset.data
    rows = [
        ("Features", _shown(found.dataset.manifest.rows("features"))),
        ("Tokens read", _shown(source.n_tokens)),
        ("Text", f"{data.get('name', 'not recorded')}{' · ' + str(data['split']) if data.get('split') else ''}"),
        ("Promoted tokens", str(data.get("logit_effects", "not recorded"))),
    ]
    return f"<h3>Feature dataset</h3>{_table(rows)}"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="hs-app-facts">{cells}</table>'


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
