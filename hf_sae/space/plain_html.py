"""HTML with nothing in it that acts: known elements without attributes, links to the web, all else as text."""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser


VOID = {"br", "hr"}
KEPT = VOID | {
    "a", "b", "blockquote", "code", "dd", "del", "details", "div", "dl", "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6", "i", "kbd",
    "li", "mark", "ol", "p", "pre", "s", "small", "strong", "sub", "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip


def plain_html(markup: str) -> str:
    """The same markup with elements of a fixed list only, closed in their order; a picture becomes its description."""
    cleaner = _Cleaner()
    cleaner.feed(markup)
    cleaner.close()
    return "".join([*cleaner.parts, *(f"</{name}>" for name in reversed(cleaner.open))])


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            said = dict(attrs).get("alt") or "picture"
            self.parts.append(f"<em>{escape(said)}</em>")
        elif tag not in KEPT:
            self.parts.append(escape(self.get_starttag_text() or f"<{tag}>"))
        else:
            self.parts.append(_link(dict(attrs).get("href")) if tag == "a" else f"<{tag}>")
            if tag not in VOID:
                self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in KEPT and tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in KEPT:
            self.parts.append(escape(f"</{tag}>"))
        if tag not in self.open:  # never opened here: what it would close is not ours
            return
        while self.open:
            last = self.open.pop()
            self.parts.append(f"</{last}>")
            if last == tag:
                break

    def handle_data(self, data: str) -> None:
        self.parts.append(escape(data))


def _link(target: str | None) -> str:
    if not (target or "").startswith(("https://", "http://", "#")):  # a file of the repo, which is not served here
        return "<a>"
    return f'<a href="{escape(target or "", quote=True)}" target="_blank" rel="noopener noreferrer nofollow">'
