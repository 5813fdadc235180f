"""About: what is served, its figures, and the author's card, read as text."""

from __future__ import annotations

from typing import Any

from .. import card
from ..limits import RequestError
from ..links import Link
from ..page import FAST, PRIVATE, Page, problem


class About:
    """The components of the tab."""

    def __init__(self, page: Page) -> None:
        import gradio as gr

        self.page = page
        self.body = gr.HTML("", elem_id="hs-about", min_height=320)

    def wire(self) -> None:
        """Nothing to press."""

    def show(self, sae: str) -> str:
        """Facts, figures and card."""
        try:
            served = self.page.service.catalog.find(sae)
            return card.about(served)
        except RequestError as error:
            return problem(error)

    def on_select(self, tab: Any) -> None:
        """The card is read when somebody looks at it."""
        tab.select(self.show, self.page.sae, self.body, **PRIVATE, **FAST)

    def link(self, sae: str) -> str:
        """The link to this tab."""
        return Link(tab="about", sae=sae).query()
