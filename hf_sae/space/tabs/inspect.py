"""Inspect text: the strongest features on each token, as a grid that can be sorted by any token."""

from __future__ import annotations

import json
from typing import Any

from .. import present, snippets
from ..limits import MAX_TEXT, MAX_TOP, RequestError
from ..links import Link
from ..page import HIDDEN, HOST, PRIVATE, CopyBar, Page, follow_tab, link_box, notice, problem


SAMPLE = (
    'import os\n\ndef main(path):\n    """Read a file."""\n    with open(path) as file:\n        return file.read()\n'
)


class Inspect:
    """The components of the tab."""

    def __init__(self, page: Page) -> None:
        import gradio as gr

        self.page = page
        self.link = link_box("inspect")
        with gr.Row(elem_classes="hs-bar"):
            self.text = gr.Textbox(
                label="Text", value=SAMPLE, lines=4, max_lines=12, max_length=MAX_TEXT, elem_id="hs-text", scale=4
            )
            with gr.Column(scale=1, min_width=200):
                self.top = gr.Slider(1, MAX_TOP, value=5, step=1, label="Features per token")
                self.go = gr.Button("Read", variant="primary", elem_id="hs-inspect-go")
        self.grid = gr.HTML(
            notice("Press Read: every token shows its strongest features."), elem_id="hs-grid", min_height=320
        )
        with gr.Row(elem_classes="hs-bar"):
            self.copy = CopyBar("inspect", command=False)
        self.result = gr.State(None, time_to_live=1800)
        self.sort = gr.Textbox(elem_id="hs-sort", **HIDDEN)

    @property
    def inputs(self) -> list[Any]:
        """What the grid depends on."""
        return [self.page.sae, self.text, self.top]

    @property
    def view(self) -> list[Any]:
        """What reading changes."""
        return [self.grid, self.result, self.link, self.copy.python]

    def wire(self, tab: Any) -> None:
        """Connects boxes and buttons."""
        ask: dict[str, Any] = {"inputs": self.inputs, "outputs": self.view, **PRIVATE, **HOST}
        self.go.click(self.read, **ask)
        self.text.submit(self.read, **ask)
        self.top.release(self.read, **ask)
        self.sort.change(self.sorted_by, [self.sort, self.result], self.grid, **PRIVATE, queue=False)
        self.copy.wire()
        follow_tab(tab, self.link)

    def read(self, sae: str, text: str, top: float) -> tuple[str, Any, str, str]:
        """The grid of a text."""
        link = self.address(sae, text)
        try:
            found = self.page.service.inspect_text(text, sae, top)  # ty: ignore[invalid-argument-type]
            origin = self.page.service.catalog.find(sae).origin
        except RequestError as error:
            return problem(error), None, link, ""
        return present.grid(found), found, link, snippets.inspect_snippet(origin, text, int(top)).python

    def address(self, sae: str, text: str) -> str:
        """The link to the reading of a text; of a long one, of its beginning."""
        return Link(tab="inspect").at(sae=self.page.named(sae), prompt=(text or "")).query()

    def sorted_by(self, message: str, found: Any) -> str:
        """The same grid, the strongest of one token first; nothing is computed again."""
        import gradio as gr

        try:
            position = int(json.loads(message)["position"])
        except (ValueError, KeyError, TypeError):
            return gr.skip()
        return present.grid(found, position) if found else gr.skip()
