"""Text of models and datasets inside HTML: nothing in it may act as markup, and nothing in it may hide."""

from __future__ import annotations

import re
from html import escape

from ..terminal import visible


_SAFE_LINK = re.compile(
    r"(https://[^/\\]|[?#]|/(?![/\\]))"
)  # of this page, this site, or a secure one; never a script


def text(value: object) -> str:
    """`value` as HTML: escaped, with whatever does not print shown as an escape. Good inside quoted attributes too."""
    return escape(visible(str(value)), quote=True)


def attributes(**values: object) -> str:
    """` name="value"` for each that is not `None` or `False`; `True` is an attribute alone, `_` in a name is `-`."""
    cells = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        cells.append(f" {name}" if value is True else f' {name}="{text(value)}"')
    return "".join(cells)


def link(href: str | None) -> str | None:
    """`href` where it leads to this page, this site or an https address; `None` for everything else, scripts above all."""
    return href if href is not None and _SAFE_LINK.match(href) and href.isprintable() else None


def handle(content: str, href: str | None, clickable: bool, **values: object) -> str:
    """HTML that can be clicked: a link where there is somewhere to go, a button where a page listens, or plain.

    Args:
        content (`str`): HTML.
        href (`str`, *optional*): where it leads; what [`link`] does not let through is left out.
        clickable (`bool`): whether the page listens for clicks.
        values: attributes, such as `data_latent=3`.
    """
    if (target := link(href)) is not None:
        return f'<a class="hs-link"{attributes(href=target, **values)}>{content}</a>'
    if clickable:
        return f'<button type="button" class="hs-link"{attributes(**values)}>{content}</button>'
    return f"<span{attributes(**values)}>{content}</span>"


def hidden(words: str) -> str:
    """Text for screen readers alone."""
    return f'<span class="hs-sr">{text(words)}</span>'
