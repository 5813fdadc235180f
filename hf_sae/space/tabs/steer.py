"""Steer: a prompt, a table of edits, and the texts that come of them side by side, token by token."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from .. import limits, snippets
from .. import streams as views
from ..asked import OPTIONS, address, options_of, rows_of
from ..edit_table import edit_table
from ..limits import RequestError
from ..links import read_link
from ..page import HIDDEN, PRIVATE, CopyBar, Page, follow_tab, link_box, notice, problem, with_request
from ..steering import POSITIONS, Ask, stream_json


if TYPE_CHECKING:
    import gradio as gr

    from ...steering import SteeringRun
    from ...steering.recipes import Preset

PROMPT = "import os\n\ndef main("
FRAME = 0.05  # seconds between two pictures of the texts
STREAMS: dict[str, Any] = {"concurrency_id": "streams", "concurrency_limit": 32}  # they share one batch
STRENGTH = 2.0


class Steer:
    """The components of the tab."""

    def __init__(self, page: Page) -> None:
        import gradio as gr

        self.page = page
        self._runs: dict[str, SteeringRun] = {}
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self._left()
            with gr.Column(scale=3, min_width=320):
                with gr.Row(elem_classes="hs-bar"):
                    self.go = gr.Button("Steer", variant="primary", elem_id="hs-steer-go", min_width=90, scale=0)
                    self.stop = gr.Button("Stop", elem_id="hs-steer-stop", min_width=80, scale=0)
                    self.copy = CopyBar("steer")
                self.streams = gr.HTML(
                    notice("Press Steer: the texts grow side by side."), elem_id="hs-streams", min_height=260
                )
                self.found = gr.HTML("", elem_id="hs-token-found")
        self.link = link_box("steer")
        self.edits = gr.Textbox("[]", elem_id="hs-edits", **HIDDEN)
        self.change = gr.Textbox(elem_id="hs-edit-change", **HIDDEN)
        self.token = gr.Textbox(elem_id="hs-token", **HIDDEN)
        self.result = gr.State(None, time_to_live=1800)

    def _left(self) -> None:
        import gradio as gr

        self.prompt = gr.Textbox(
            label="Prompt", value=PROMPT, lines=3, max_lines=10, max_length=limits.MAX_TEXT, elem_id="hs-steer-prompt"
        )
        self.chat = gr.Checkbox(label="The prompt is a message to a chat model", value=False)
        self.table = gr.HTML(edit_table([], [], []), elem_id="hs-edit-table", min_height=60)
        with gr.Row(elem_classes="hs-bar"):
            self.number = gr.Number(
                label="Add feature", precision=0, minimum=0, elem_id="hs-steer-feature", min_width=110
            )
            self.add = gr.Button("Add", elem_id="hs-steer-add", size="sm", min_width=60, scale=0)
        self.preset = gr.Dropdown([], label="Presets of its author", visible=False, elem_id="hs-preset")
        with gr.Row(elem_classes="hs-bar"):
            self.sweep = gr.Checkbox(label="Sweep of strengths (¼×, ½×, 2×, 4×)", value=False, elem_id="hs-sweep")
            self.ablation = gr.Checkbox(label="Also with the features off", value=False)
        with gr.Accordion("Sampling and more", open=False):
            self.tokens = gr.Slider(
                1, limits.MAX_NEW_TOKENS, value=40, step=1, label="New tokens", elem_id="hs-tokens"
            )
            self.temperature = gr.Slider(
                0, 2, value=0, step=0.05, label="Temperature", info="0 takes the likeliest token"
            )
            self.top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="the same for all columns")
            self.positions = gr.Radio(list(POSITIONS), value="all", label="Tokens that are steered")
            self.told = gr.Textbox(
                label="Compare with words alone",
                placeholder="An instruction, read before the prompt, without edits",
                max_length=limits.MAX_QUERY,
            )

    @property
    def asked(self) -> list[Any]:
        """What a run depends on."""
        return [
            self.prompt, self.edits, self.tokens, self.temperature, self.top_p, self.seed, self.sweep, self.ablation, self.told,
            self.positions, self.chat,
        ]  # fmt: skip

    @property
    def edited(self) -> list[Any]:
        """What a change of the edits changes."""
        return [self.edits, self.table]

    def wire(self, tab: Any) -> None:
        """Connects buttons, table and clicks."""
        import gradio as gr

        quick: dict[str, Any] = {**PRIVATE, "queue": False}
        given = [self.page.sae, *self.asked]
        outputs = [self.streams, self.result, self.link, *self.copy.view]
        self.go.click(with_request(self.run), given, outputs, **PRIVATE, **STREAMS, trigger_mode="once")
        self.stop.click(with_request(self.halt), None, None, **quick)
        here = [self.page.sae, self.edits]
        self.add.click(self.added, [*here, self.number], self.edited, **quick)
        self.number.submit(self.added, [*here, self.number], self.edited, **quick)
        self.change.change(self.changed, [*here, self.change], self.edited, **quick)
        self.preset.input(
            self.preset_chosen, [self.page.sae, self.preset], [*self.edited, self.prompt, self.positions], **quick
        )
        self.token.change(self.clicked, [self.page.sae, self.token, self.result], self.found, **quick)
        tab.select(self.presets, self.page.sae, self.preset, **quick)
        gr.on([self.edits.change, self.prompt.change], self.here, given, self.link, **quick)
        follow_tab(tab, self.link)
        self.copy.wire()

    def here(self, sae: str, *given: Any) -> str:
        """The address of what the tab shows."""
        return self.said(sae, self.ask(*given))[0]

    def ask(self, prompt: str, edits: str, tokens: float, temperature: float, top_p: float, seed: float, sweep: bool,
            ablation: bool, told: str, positions: str, chat: bool) -> Ask:  # fmt: skip
        """What the components say."""
        factors = [0.25, 0.5, 2.0, 4.0] if sweep else []
        sampling = (tokens, temperature, top_p, seed)
        return Ask(prompt, rows_of(edits), *sampling, factors, ablation, told or "", positions, chat, trace=True)

    def run(self, request: gr.Request, sae: str, *given: Any) -> Generator[list[Any]]:
        """The texts while they grow; the visitor's earlier ones end."""
        ask = self.ask(*given)
        link, copied = self.said(sae, ask)
        self.halt(request)
        try:
            if not self.page.service.streams_here:
                streams = self.page.service.finished_streams(ask, sae)
                yield [views.columns(streams, ask), [stream_json(stream) for stream in streams], link, *copied]
                return
            run = self.page.service.start_steering(ask, sae)
        except RequestError as error:
            yield [problem(error), None, link, *copied]
            return
        key = str(request.session_hash)
        self._runs[key] = run
        shown = 0.0
        try:
            with run:
                for streams in run:
                    if time.monotonic() - shown < FRAME and not all(stream.ended for stream in streams):
                        continue
                    shown = time.monotonic()
                    found = [stream_json(stream) for stream in streams]
                    yield [views.columns(streams, ask), found, link, *copied]
        finally:
            if self._runs.get(key) is run:
                del self._runs[key]

    def halt(self, request: gr.Request) -> None:
        """Stops what this visitor has running."""
        run = self._runs.get(str(request.session_hash))
        if run is not None:
            run.stop()

    def said(self, sae: str, ask: Ask) -> tuple[str, list[str]]:
        """The address of a run, and the same as Python and as a command."""
        query = address(ask, self.page.named(sae))
        try:
            snippet = snippets.steer_snippet(self.page.service.catalog.find(sae).origin, ask)
        except (ValueError, TypeError, OverflowError):  # what cannot be run is not copied; running it says why
            return query, ["", ""]
        return query, [snippet.python, snippet.command]

    def added(self, sae: str, edits: str, feature: float | None, of: str = "") -> list[Any]:
        """The edits with one more feature; `of` is its autoencoder where that is another one than the chosen."""
        rows = rows_of(edits)
        if feature is not None and 0 <= feature <= limits.MAX_FEATURE:
            of = "" if of == sae else of
            new = (int(feature), of)
            rows = [row for row in rows if (row.get("feature"), self._other(row, sae)) != new]
            rows.append({"feature": new[0], "strength": STRENGTH, "unit": self._unit(of or sae, new[0]), "sae": of})
        return self.drawn(sae, rows)

    def _other(self, row: dict[str, Any], sae: str) -> Any:
        return "" if row.get("sae") == sae else row.get("sae") or ""

    def _unit(self, sae: str, feature: int) -> str:
        """Maxima where one was recorded, else norms; maxima while nobody knows."""
        loaded = self._served(sae) and self.page.service.catalog.find(sae).sae is not None
        return "max" if not loaded or self.page.service.recorded_maximum(feature, sae) else "norm"

    def _served(self, sae: str) -> bool:
        # a name in an edit of a link loads nothing
        return not sae or any(served.name == sae for served in self.page.service.catalog.served())

    def changed(self, sae: str, edits: str, message: str) -> list[Any]:
        """What a click in the table or on a found feature asks for."""
        import gradio as gr

        try:
            facts = json.loads(message or "{}")
            rows = rows_of(edits)
            if "remove" in facts:
                rows.pop(int(facts["remove"]))
            elif "add" in facts:
                return self.added(sae, edits, float(facts["add"]), str(facts.get("sae") or ""))
        except (ValueError, TypeError, IndexError, OverflowError, RecursionError):
            return [gr.skip()] * 2
        return self.drawn(sae, rows)

    def drawn(self, sae: str, rows: list[dict[str, Any]]) -> list[Any]:
        """Edits as JSON and as a table; those that cannot be are said."""
        from ...errors import DataError
        from ...steering.recipes import rows_from_json

        try:
            known = rows_from_json(rows)
        except DataError as error:
            return ["[]", notice(str(error), "problem")]
        facts = [self._known(row.feature, row.sae or sae) for row in known]
        labels, maxima = [label for label, _ in facts], [maximum for _, maximum in facts]
        return [json.dumps([row.to_json() for row in known]), edit_table(known, labels, maxima)]

    def _known(self, feature: int, sae: str) -> tuple[str | None, float | None]:
        """Label of a feature, and the maximum that strengths are multiples of: the dataset's until the other is there."""
        service = self.page.service
        if not self._served(sae):
            return None, None
        loaded = service.catalog.find(sae).sae is not None
        maximum = service.recorded_maximum(feature, sae) if loaded else service.maximum(feature, sae)
        return service.label(feature, sae), maximum

    def presets(self, sae: str) -> Any:
        """The choice of presets, where there are any."""
        import gradio as gr

        names = [preset.name for preset in self._presets(sae)]
        return gr.Dropdown(names, visible=bool(names), value=None)

    def _presets(self, sae: str) -> list[Preset]:
        try:
            return self.page.service.presets(sae)
        except RequestError:  # a damaged file is its author's to see
            return []

    def preset_chosen(self, sae: str, name: str) -> list[Any]:
        """The edits, prompt and positions of a preset."""
        import gradio as gr

        chosen = next((preset for preset in self._presets(sae) if preset.name == name), None)
        if chosen is None:
            return [gr.skip()] * 4
        rows = [row.to_json() for row in chosen.rows]
        return [*self.drawn(sae, rows), chosen.prompt or gr.skip(), chosen.positions]

    def clicked(self, sae: str, message: str, result: Any) -> str:
        """The strongest features of a generated token, each with a button that adds it to the edits."""
        try:
            facts = json.loads(message or "{}")
            token = result[int(facts["row"])]["tokens"][int(facts["position"])]
        except (ValueError, TypeError, KeyError, IndexError):
            return ""
        labels = [self._known(one["latent"], one["sae"])[0] for one in token["latents"]]
        return views.token_features(token, labels)

    def opened(self, asked: str, sae: str) -> list[Any]:
        """The components as an address wants them, in the order of [`Steer.settings`]."""
        import gradio as gr

        link = read_link(asked)
        if link.tab != "steer":
            return [gr.skip()] * len(self.settings)
        given = options_of(link)
        told = (given.get(name, gr.skip()) for name in OPTIONS)
        return [*self.drawn(link.sae or sae, list(link.edits)), link.prompt or gr.skip(), *told]

    def from_feature(self, sae: str, edits: str, feature: float | None) -> list[Any]:
        """The feature that is shown, added to the edits; and this tab."""
        import gradio as gr

        return [*self.added(sae, edits, feature), gr.Tabs(selected="steer")]

    @property
    def settings(self) -> list[Any]:
        """What a link sets, in the order of [`Steer.opened`]."""
        return [
            *self.edited, self.prompt, self.tokens, self.temperature, self.top_p, self.seed, self.sweep, self.ablation, self.told,
            self.positions, self.chat,
        ]  # fmt: skip
