"""What the tabs share: the service, the components at the top, and how a handler fails politely."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from .limits import RequestError
from .links import Link
from .service import Service


HIDDEN: dict[str, Any] = {"visible": "hidden", "show_label": False, "container": False}
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
HOST: dict[str, Any] = {"concurrency_id": "host", "concurrency_limit": 4}  # they wait for one thread anyway
FAST: dict[str, Any] = {"concurrency_id": "tables", "concurrency_limit": 8}


@dataclass
class Page:
    """The components that every tab reads or writes.

    Args:
        service ([`Service`]): answers.
        sae: dropdown with the name of the autoencoder.
        tabs: the tabs.
        asked: state with the query of the address that the page was opened with.
        goto: hidden box that the script writes to when a feature is clicked.
        status: what is still loading, in words.
        kept: the visitor's list of features, which stays in the browser.
    """

    service: Service
    sae: Any
    tabs: Any
    asked: Any
    goto: Any
    status: Any
    kept: Any

    def named(self, sae: str | None) -> str:
        """The name of an autoencoder in links: nothing for the one that comes first."""
        served = self.service.catalog.served()
        return "" if served and sae == served[0].name else sae or ""


def link_box(tab: str) -> Any:
    """The hidden box with the address of a tab: while the tab is looked at, the address bar shows what is written there.

    Args:
        tab (`str`): as links name it.
    """
    import gradio as gr

    box = gr.Textbox(Link(tab).query(), elem_id=f"hs-link-{tab}", **HIDDEN)
    box.change(None, box, js="(query) => hfsae.remember(query)")
    return box


def follow_tab(tab: Any, box: Any) -> None:
    """Shows the address of a tab when somebody turns to it."""
    tab.select(None, box, js="(query) => hfsae.remember(query)")


class CopyBar:
    """Buttons that copy what the tab shows: its link, and the same as Python and as a command.

    Args:
        name (`str`): of the tab; part of the ids of the buttons.
        command (`bool`): whether there is a command for it.
    """

    def __init__(self, name: str, command: bool = True) -> None:
        import gradio as gr

        self.name = name
        small: dict[str, Any] = {"size": "sm", "scale": 0}
        self.link = gr.Button("Copy link", elem_id=f"hs-{name}-link", min_width=90, **small)
        self.as_python = gr.Button("Copy as Python", elem_id=f"hs-{name}-as-python", min_width=130, **small)
        self.as_command = gr.Button(
            "Copy as command", elem_id=f"hs-{name}-as-command", min_width=140, visible=command, **small
        )
        self.python = gr.Textbox(elem_id=f"hs-{name}-python", **HIDDEN)
        self.command = gr.Textbox(elem_id=f"hs-{name}-command", **HIDDEN)

    @property
    def view(self) -> list[Any]:
        """The boxes with the two texts, to be written by the tab."""
        return [self.python, self.command]

    def wire(self) -> None:
        """Connects the buttons; copying happens in the browser."""
        self.link.click(None, js=f"() => hfsae.copyLink('{self.link.elem_id}')")
        self.as_python.click(None, self.python, js=f"(text) => hfsae.copy(text, '{self.as_python.elem_id}')")
        self.as_command.click(None, self.command, js=f"(text) => hfsae.copy(text, '{self.as_command.elem_id}')")


def notice(words: str, kind: str = "note") -> str:
    """A message in the place of a result."""
    return f'<p class="hs-app-{kind}" role="status">{escape(words)}</p>'


def problem(error: RequestError) -> str:
    """What went wrong, in its own words."""
    return notice(str(error), "problem")


def with_request(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose argument `request` Gradio fills in: it looks for the class itself, which no module here imports."""
    import gradio as gr

    function.__annotations__["request"] = gr.Request
    return function


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the service as an endpoint: its errors reach the caller in words."""

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        import gradio as gr

        try:
            return function(*args, **kwargs)
        except RequestError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return answer
