"""About: what is served, its figures, and the author's card, read as text."""

from __future__ import annotations

from typing import Any

from .. import card
from ..limits import RequestError
from ..links import Link
from ..page import FAST, PRIVATE, Page, follow_tab, link_box, problem


class About:
    """The components of the tab."""

    def __init__(self, page: Page) -> None:
        import gradio as gr

        self.page = page
        self.link = link_box("about")
        self.body = gr.HTML("", elem_id="hs-about", min_height=320)

    def wire(self, tab: Any) -> None:
        """The card is read when somebody looks at it."""
        page = self.page
        follow_tab(tab, self.link)
        tab.select(self.show, page.sae, [self.body, self.link], **PRIVATE, **FAST)

    def show(self, sae: str) -> tuple[str, str]:
        """Facts, figures and card, and the link to them."""
        link = Link(tab="about").at(sae=self.page.named(sae)).query()
        try:
            return card.about(self.page.service.catalog.find(sae)), link
        except (RequestError, OSError, ValueError) as error:  # the repo cannot be read: no card, but words
            return problem(RequestError(str(error))), link
