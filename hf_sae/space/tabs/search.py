"""Search: by words, by a prompt, by the contrast of two sets of texts, by a promoted token."""

from __future__ import annotations

from typing import Any

from .. import present, snippets
from ..limits import MAX_TEXT, RequestError
from ..links import Link
from ..page import HOST, PRIVATE, CopyBar, Page, follow_tab, link_box, notice, problem
from ..snippets import lines_of


MODES = [
    ("Words", "words"),
    ("Fires on a text", "prompt"),
    ("Tells two texts apart", "contrast"),
    ("Promotes a token", "promoted"),
]
HINTS = {
    "words": ("Find", "docstring, “open file”, a word that the feature may be about"),
    "prompt": ("Text on which it fires", "import os"),
    "contrast": ("Texts of the one kind, one a line", "def f(x):"),
    "promoted": ("Token, with its space", " self"),
}
EMPTY = {
    "words": "Nothing matches. Try one word alone, a word of the text itself (contexts are searched, too), or “Fires on a text”.",
    "prompt": "Nothing fires on this text. Try a longer one.",
    "contrast": "Nothing tells these texts apart. Try texts that differ more.",
    "promoted": "No feature lists this token among those that it promotes. Try it with a space before it, or search for words.",
}


class Search:
    """The components of the tab."""

    def __init__(self, page: Page) -> None:
        import gradio as gr

        self.page = page
        self.link = link_box("search")
        self.mode = gr.Radio(MODES, value="words", show_label=False, container=False, elem_id="hs-mode")
        with gr.Row(elem_classes="hs-bar"):
            self.query = gr.Textbox(
                label=HINTS["words"][0],
                placeholder=HINTS["words"][1],
                lines=1,
                max_lines=8,
                max_length=MAX_TEXT,
                elem_id="hs-query",
                scale=4,
            )
            self.go = gr.Button("Search", variant="primary", elem_id="hs-search-go", scale=0, min_width=110)
        self.against = gr.Textbox(
            label="Texts of the other kind, one a line",
            placeholder="import os",
            lines=2,
            max_length=MAX_TEXT,
            visible=False,
            elem_id="hs-against",
        )
        with gr.Accordion("Filters", open=False), gr.Row():
            self.rare = gr.Slider(
                -6, 0, value=0, step=0.5, label="Fires on at most this share of tokens (power of ten)"
            )
            self.score = gr.Slider(0, 1, value=0, step=0.05, label="Score of its label, at least")
            self.limit = gr.Slider(5, 50, value=10, step=5, label="Results")
        self.results = gr.HTML(
            notice("Type what you look for, and press Enter."), elem_id="hs-results", min_height=320
        )
        with gr.Row(elem_classes="hs-bar"):
            self.copy = CopyBar("search")

    @property
    def inputs(self) -> list[Any]:
        """What a search depends on."""
        return [self.page.sae, self.mode, self.query, self.against, self.rare, self.score, self.limit]

    @property
    def view(self) -> list[Any]:
        """What a search changes."""
        return [self.results, self.link, *self.copy.view]

    def wire(self, tab: Any) -> None:
        """Connects boxes and buttons."""
        ask: dict[str, Any] = {"inputs": self.inputs, "outputs": self.view, **PRIVATE, **HOST}
        self.query.submit(self.search, **ask)
        self.go.click(self.search, **ask)
        self.against.submit(self.search, **ask)
        self.mode.change(self.labelled, self.mode, [self.query, self.against], **PRIVATE, queue=False)
        self.copy.wire()
        follow_tab(tab, self.link)

    def labelled(self, mode: str) -> tuple[Any, Any]:
        """The boxes for a kind of search."""
        import gradio as gr

        label, placeholder = HINTS.get(mode, HINTS["words"])
        lines = 2 if mode == "contrast" else 1
        return gr.Textbox(label=label, placeholder=placeholder, lines=lines), gr.Textbox(visible=mode == "contrast")

    def search(
        self, sae: str, mode: str, query: str, against: str, rare: float, score: float, limit: float
    ) -> tuple[str, str, str, str]:
        """Hits, and the link and snippets that give them again."""
        link = self.address(sae, mode, query, against)
        try:
            found = self._ask(sae, mode, query, against, rare, score, limit)
            served = self.page.service.catalog.find(sae)
        except RequestError as error:
            return problem(error), link, "", ""
        made = snippets.search_snippet(served.origin, mode, query, against or "", int(limit))
        shown = present.hits(found) if found["hits"] else notice(EMPTY[mode])
        return shown, link, made.python, made.command

    def address(self, sae: str, mode: str, query: str, against: str) -> str:
        """The link to a search."""
        link = Link(tab="search").at(sae=self.page.named(sae), q=query or "", mode=mode, against=against or "")
        return link.query()

    def _ask(
        self, sae: str, mode: str, query: str, against: str, rare: float, score: float, limit: float
    ) -> dict[str, Any]:
        service = self.page.service
        if mode == "prompt":
            return service.top_features_for_prompt(query, sae, "tf-idf", limit)  # ty: ignore[invalid-argument-type]
        if mode == "contrast":
            return service.contrast_texts(lines_of(query), lines_of(against or ""), sae, limit)  # ty: ignore[invalid-argument-type]
        most = None if rare >= 0 else 10.0**rare
        least = score if score > 0 else None
        return service.search_features(query, sae, mode, limit, None, most, least)  # ty: ignore[invalid-argument-type]
