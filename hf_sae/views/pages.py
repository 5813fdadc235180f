"""Whole documents around views: a page of its own, and what a notebook shows."""

from __future__ import annotations

from html import escape

from .markup import text
from .themes import style


POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing runs, and nobody is asked for anything
_GROUND = """
html { color-scheme: light dark; background: #fff } body { margin: 0 } main { max-width: 76rem; margin: 0 auto; padding: 16px }
@media (prefers-color-scheme: dark) { html { background: #14161A } }
"""


def page(title: str, body: str, *, css: str | None = None, policy: str = POLICY) -> str:
    """A document of its own, which runs no script.

    Args:
        title (`str`): of the window; escaped.
        body (`str`): HTML, as the views make it.
        css (`str`, *optional*): the style sheet; by default that of the views.
        policy (`str`): what the page may load, as a Content-Security-Policy.
    """
    css = _GROUND + style() if css is None else css
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}"><style>{css}</style></head><body><main>'
        f"{body}</main></body></html>\n"
    )


def notebook(body: str) -> str:
    """What `_repr_html_` returns: a view with the style sheet, which is about nothing but the view."""
    return f"<style>{style()}</style>{body}"
