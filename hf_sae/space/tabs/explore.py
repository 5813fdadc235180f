"""Explore: one feature, and what it does on your own text."""

from __future__ import annotations

import json
import random
from typing import Any

from ...views import feature_skeleton
from .. import present, snippets
from ..limits import MAX_TEXT, RequestError
from ..links import Link
from ..page import FAST, HOST, PRIVATE, CopyBar, Page, follow_tab, link_box, notice, problem


FIRST_SECONDS = 5.0  # that the very first page waits for a feature worth showing


class Explore:
    """The components of the tab; [`Explore.wire`] gives them their events once all tabs are there."""

    def __init__(self, page: Page) -> None:
        import gradio as gr

        self.page = page
        self.link = link_box("explore")
        self.gallery = gr.HTML("", elem_id="hs-gallery")
        with gr.Row(elem_classes="hs-bar"):
            self.feature = gr.Number(
                label="Feature", precision=0, minimum=0, value=None, elem_id="hs-feature", min_width=110, scale=0
            )
            self.previous = gr.Button("←", elem_id="hs-previous", size="sm", min_width=44, scale=0)
            self.next = gr.Button("→", elem_id="hs-next", size="sm", min_width=44, scale=0)
            self.random = gr.Button("Random", elem_id="hs-random", size="sm", min_width=80, scale=0)
            self.steer = gr.Button(
                "Steer", elem_id="hs-steer-this", size="sm", min_width=70, scale=0, variant="primary"
            )
            self.copy = CopyBar("explore")
            self.keep = gr.Button("Save to list", elem_id="hs-keep", size="sm", min_width=100, scale=0)
        self.own = gr.Textbox(
            label="Try your own text",
            placeholder="Type, and see where this feature fires",
            lines=1,
            max_lines=6,
            max_length=MAX_TEXT,
            elem_id="hs-own",
        )
        self.strip = gr.HTML("", elem_id="hs-own-strip")
        self.body = gr.HTML(feature_skeleton(), elem_id="hs-explore", min_height=480)
        with gr.Accordion("Your list (kept in this browser)", open=False):
            self.list = gr.HTML("", elem_id="hs-list")
            with gr.Row():
                self.export = gr.Button("Save as file", size="sm", scale=0, min_width=120)
                self.clear = gr.Button("Empty the list", size="sm", scale=0, min_width=120)
            self.paste = gr.Textbox(
                label="Add from JSON", placeholder='[{"sae": "user/repo", "feature": 12}]', lines=1
            )

    @property
    def view(self) -> list[Any]:
        """What changes with the feature."""
        return [self.feature, self.body, self.strip, self.link, *self.copy.view]

    def wire(self, tab: Any) -> None:
        """Connects buttons, keys and boxes."""
        page = self.page
        show: dict[str, Any] = {"outputs": self.view, **PRIVATE, **FAST}
        here = [page.sae, self.feature, self.own]
        self.feature.submit(self.show, here, **show)
        self.previous.click(self.step_back, here, **show)
        self.next.click(self.step, here, **show)
        self.random.click(self.show_random, here, **show)
        page.goto.change(
            self.open, [page.goto, page.sae, self.own], [page.sae, page.tabs, *self.view], **PRIVATE, **FAST
        )
        self.own.input(
            self.read, [page.sae, self.feature, self.own], self.strip, trigger_mode="always_last", **PRIVATE, **HOST
        )
        self.copy.wire()
        follow_tab(tab, self.link)
        follow_tab(tab, self.link)
        self.keep.click(self.add, [page.sae, self.feature, page.kept], [page.kept, self.list], **PRIVATE, **FAST)
        self.clear.click(lambda: ([], self.listed([])), None, [page.kept, self.list], **PRIVATE, **FAST)
        self.paste.submit(self.pasted, [self.paste, page.kept], [page.kept, self.list, self.paste], **PRIVATE, **FAST)
        self.export.click(None, page.kept, js="(items) => hfsae.save(items)")

    def show(self, sae: str, feature: Any, own: str = "") -> list[Any]:
        """The page of a feature; without one, of one that is easy to read."""
        try:
            number = self.first(sae) if feature is None else feature
            found = self.page.service.get_feature(number, sae)
        except RequestError as error:
            return [feature, problem(error), "", self.address(sae, None), "", ""]
        number = found["feature"]
        served = self.page.service.catalog.find(sae)
        snippet = snippets.feature_snippet(served.origin, number, present.turned_up(found))
        strip = self.read(sae, number, own) if own else ""
        return [number, present.feature(found), strip, self.address(sae, number), snippet.python, snippet.command]

    def address(self, sae: str, feature: Any) -> str:
        """The link to what is shown."""
        return Link().at(sae=self.page.named(sae), feature=None if feature is None else int(feature)).query()

    def first(self, sae: str) -> int:
        """A feature to begin with."""
        chosen = self.page.service.examples(sae, FIRST_SECONDS)
        return chosen[0]["feature"] if chosen else 0

    def step(self, sae: str, feature: Any, own: str, by: int = 1) -> list[Any]:
        """The next feature, the first one after the last."""
        total = self.page.service.catalog.find(sae).facts["d_sae"] or 1
        return self.show(sae, (int(feature or 0) + by) % total, own)

    def step_back(self, sae: str, feature: Any, own: str) -> list[Any]:
        """The one before."""
        return self.step(sae, feature, own, -1)

    def show_random(self, sae: str, feature: Any, own: str) -> list[Any]:
        """Any feature that fires."""
        try:
            known = self.page.service.living(sae)
        except RequestError:
            known = range(self.page.service.catalog.find(sae).facts["d_sae"] or 1)
        return self.show(sae, random.choice(known) if known else 0, own)

    def open(self, message: str, sae: str, own: str) -> list[Any]:
        """What was clicked, from the script's message."""
        import gradio as gr

        try:
            facts = json.loads(message or "{}")
            wanted, feature = str(facts.get("sae") or sae or ""), facts.get("feature")
        except (ValueError, AttributeError):
            wanted, feature = sae, None
        if feature is None:
            return [gr.skip()] * (2 + len(self.view))
        return [wanted, gr.Tabs(selected="explore"), *self.show(wanted, feature, own)]

    def read(self, sae: str, feature: Any, own: str) -> str:
        """Where the feature fires in a text."""
        if not (own or "").strip():
            return ""
        try:
            found = self.page.service.activations_on(own, self.first(sae) if feature is None else feature, sae)
        except RequestError as error:
            return problem(error)
        return present.strip(found, self.page.service.maximum(found["feature"], sae))

    def add(self, sae: str, feature: Any, kept: Any) -> tuple[list[dict[str, Any]], str]:
        """The list with the feature that is shown."""
        items = present.saved(kept)
        if feature is not None:
            label = self.page.service.label(int(feature), sae)
            item = {"sae": sae or self.page.service.catalog.find("").name, "feature": int(feature), "label": label}
            items = [old for old in items if (old["sae"], old["feature"]) != (item["sae"], item["feature"])] + [item]
        return items, self.listed(items)

    def pasted(self, text: str, kept: Any) -> tuple[list[dict[str, Any]], str, str]:
        """The list with what was pasted."""
        try:
            more = present.saved(json.loads(text))
        except ValueError:
            return present.saved(kept), notice("That is no JSON list of features.", "problem"), text
        items = present.saved([*present.saved(kept), *more])
        return items, self.listed(items), ""

    def listed(self, kept: Any) -> str:
        """The list as HTML."""
        items = present.saved(kept)
        return (
            present.bookmarks(items) if items else notice("Nothing is saved yet: “Save to list” keeps a feature here.")
        )
