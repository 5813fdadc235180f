"""A real browser that is watched: what it asks for, what its console says, and nothing beyond loopback is let through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
HERE = ("127.0.0.1", "localhost")
PHONE, DESK = {"width": 375, "height": 800}, {"width": 1280, "height": 900}


@dataclass
class Watched:
    """A page and what it did that it should not have done."""

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.page.locator(selector).first.inner_text()

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def missing() -> str:
    """Why no browser can be run here, or `""`."""
    try:
        import gradio  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"needs gradio and playwright: {error}"
    return "" if CHROMIUM.exists() else f"needs {CHROMIUM}: apt-get install chromium"


@contextmanager
def watch(browser: Any, dark: bool = False, **options: Any) -> Iterator[Watched]:
    """A fresh visitor; ends with an error if anything was asked of another machine, or the console complained."""
    context = browser.new_context(**{"viewport": DESK, "color_scheme": "dark" if dark else "light"} | options)
    watched = Watched(context.new_page())

    def route(route: Any) -> None:
        if urlsplit(route.request.url).hostname in HERE:
            route.continue_()
        else:
            watched.outside.append(route.request.url)
            route.abort()

    context.route(lambda url: url.startswith(("http:", "https:", "ws:", "wss:")), route)
    watched.page.on("console", lambda m: watched.errors.append(m.text) if m.type == "error" else None)
    watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
    watched.page.set_default_timeout(15_000)
    try:
        yield watched
        assert watched.outside == []
        assert watched.errors == []
        assert watched.page.evaluate("window.broken") is None, "text of data was run"
    finally:
        context.close()
