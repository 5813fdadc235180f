"""Steering through the service: bounds, equality with the engine, people at once, presets, copies, links, and hostile text."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hf_sae.cli import main
from hf_sae.space.asked import OPTIONS, address, options_of, rows_of
from hf_sae.space.catalog import Served
from hf_sae.space.edit_table import edit_table
from hf_sae.space.limits import RequestError
from hf_sae.space.links import read_link
from hf_sae.space.machines import Machines
from hf_sae.space.service import Service
from hf_sae.space.snippets import Origin, Snippet, steer_snippet
from hf_sae.space.sources import Given
from hf_sae.space.steering import Ask, edit_rows, stream_json
from hf_sae.space.streams import columns, token_features
from hf_sae.steering import (
    OfMax,
    Sampling,
    SteeringPlan,
    SteeringRequest,
    Stream,
    Variant,
    ablate,
    add,
    sweep,
    when,
)
from hf_sae.steering.engine.streams import GeneratedToken
from hf_sae.steering.recipes import PRESETS, EditRow
from tests.space.planted import CLASS, D_SAE, DEAD, EVIL, IMPORT, LABEL, OS, PRESET, RETURN, SELF


PROMPT = "import os\n\ndef main("
EDITS = [{"feature": SELF, "strength": 3.0}]
PLAIN: dict[str, Any] = {"prompt": PROMPT, "edits": EDITS, "max_new_tokens": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edits": [{"feature": 0, "strength": math.nan}]}, "strength=nan"),
        ({"edits": [{"feature": 0, "strength": math.inf}]}, "strength=inf"),
        ({"edits": [{"feature": 0, "strength": 1e9}]}, r"strength=1000000000\.0"),
        ({"edits": [{"feature": 0, "strength": 10**400}]}, "strength=1000"),
        ({"edits": [{"feature": 0, "strength": 100.5}]}, r"strength is 100\.5: give a number from -100 to 100"),
        ({"edits": [{"feature": 0, "strength": -2e5, "unit": "latent"}]}, "strength is -200000"),
        ({"edits": [{"feature": D_SAE}]}, f"latent {D_SAE} does not exist"),
        ({"edits": [{"feature": DEAD}]}, "its recorded maximum is 0"),
        ({"edits": [{"feature": 0, "when": D_SAE}]}, f"latent {D_SAE} does not exist"),
        ({"edits": [{"feature": -1}]}, "feature=-1"),
        ({"edits": [{"feature": 10**400}]}, "feature=1000"),
        ({"edits": [{"feature": 0, "operation": "explode"}]}, "operation='explode' is none of 'add'"),
        ({"edits": [{"feature": 0, "unit": []}]}, r"unit=\[\]"),
        ({"edits": [{"feature": 0, "on": "yes"}]}, "true or false"),
        ({"edits": [{"feature": 0, "code": "x"}]}, "is no edit"),
        ({"edits": [{"feature": 0, "sae": "other"}]}, "'other' reads another host, or is not loaded yet"),
        ({"edits": [{"feature": 0}] * 100}, "100 edits: at most 64"),
        ({"edits": "x"}, "is no list of edits"),
        ({"edits": None}, "is no list of edits"),
        ({"edits": []}, "nothing to steer with"),
        ({"edits": [{"feature": 0, "on": False}], "sweep": [2]}, "nothing to steer with"),
        ({"seed": -1}, "seed is -1: give a whole number from 0"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"seed": 10**400}, "seed is 1000"),
        ({"seed": None}, "seed is None"),
        ({"max_new_tokens": 1000}, "max_new_tokens is 1000: give a whole number from 1 to 256"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": math.nan}, "max_new_tokens is nan"),
        ({"max_new_tokens": 256}, "more than its 256"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0}, "top_p is 0"),
        ({"sweep": [1.0] * 50}, "sweep is a list of at most 6"),
        ({"sweep": "0.5"}, "sweep is a list"),
        ({"sweep": [math.nan]}, "a multiple of the sweep is nan"),
        ({"sweep": [1e9]}, "a multiple of the sweep is 1000000000"),
        ({"sweep": [None]}, "a multiple of the sweep is None"),
        ({"instruction": "x" * 1001}, "instruction has 1,001 characters"),
        ({"instruction": None}, "instruction is None"),
        ({"instruction": "a\udc80"}, "half a character"),
        ({"positions": "everywhere"}, "positions is 'everywhere': give one of all, prompt"),
        ({"positions": {}}, "positions is {}"),
        ({"sae": "nobody"}, "names no autoencoder"),
        ({"sae": "../x"}, "names no autoencoder"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"prompt": "x" * 8001}, "prompt has 8,001 characters"),
        ({"prompt": "a b " * 300}, "Give a shorter prompt"),
        ({"chat": True}, "no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_words(service: Service, change: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=words) as caught:
        service.steer(**PLAIN | change)
    assert len(str(caught.value)) < 400


def test_whatever_is_asked_there_is_an_answer_or_words(service: Service):
    rng = random.Random(0)
    anything: list[Any] = [
        None, True, -1, 0, 3, 0.5, 2**31, 2**63, 10**400, -(10**400), 1e-300, 1e300, math.nan, math.inf, "", "x", "\ud800", [], {},
        [[]], [None], b"x", "all", "1", [1, "2"],
    ]  # fmt: skip
    edits = (*EditRow.__dataclass_fields__, "other")
    answered, refused = 0, []
    for _ in range(400):
        given: dict[str, Any] = PLAIN | {"max_new_tokens": 1}
        for name in rng.sample([*given, *OPTIONS[1:6], "positions", "chat"], rng.randrange(1, 3)):
            if name != "ablation":
                given[name] = rng.choice(anything)
        if rng.random() < 0.5:
            given["edits"] = [
                {"feature": 1} | {rng.choice(edits): rng.choice(anything)} for _ in range(rng.randrange(1, 3))
            ]
        try:
            json.dumps(service.steer(**given), allow_nan=False)
            answered += 1
        except RequestError as error:
            refused.append(str(error))
    assert all(words.endswith(".") for words in refused), refused
    assert min(answered, len(refused)) > 20
    assert service.catalog.find().machine.get().engine.n_rows == 0


def test_a_temperature_next_to_zero_is_zero(service: Service):
    greedy = service.steer(**PLAIN)
    for temperature in (1e-300, 1e-40, 1e-7):
        assert texts(service.steer(**PLAIN, temperature=temperature)) == texts(greedy)


def test_edits_get_the_name_of_the_autoencoder_that_is_meant():
    rows = edit_rows([{"feature": 1}, {"feature": 2, "sae": "b"}], ["a", "b"], "a")
    assert [row.sae for row in rows] == ["a", "b"]


def test_the_answer_is_what_the_engine_gives_by_itself(service: Service):
    plan = SteeringPlan({"planted": [add({SELF: OfMax(3.0)}), when(ablate(OS), IMPORT)]}, "generated")
    variants = (Variant("Baseline"), Variant("Steered", plan), Variant("Prompt only", instruction="# a class"))
    sampling = Sampling(0.8, top_p=0.9, seed=3)
    request = SteeringRequest(PROMPT, (*variants, *sweep(plan, [0.5, -1])), 12, sampling)
    wanted = service.catalog.find().machine.get().engine.generate(request)
    edits = [
        {"feature": SELF, "strength": 3},
        {"feature": OS, "operation": "ablate", "when": IMPORT},
        {"feature": 5, "on": False},
    ]
    found = service.steer(
        PROMPT, edits, "", 12, 0.8, 0.9, 3, sweep=[0.5, -1], instruction=" # a class ", positions="generated"
    )  # fmt: skip
    assert found["sae"] == "planted"
    assert found["streams"] == [stream_json(stream) for stream in wanted]
    assert [stream["name"] for stream in found["streams"]] == ["Baseline", "Steered", "Prompt only", "0.5×", "-1×"]
    assert len({stream["text"] for stream in found["streams"]}) > 2


def test_ablation_is_a_text_of_its_own(service: Service):
    ask = Ask(PROMPT, EDITS, 4, ablation=True)
    with service.start_steering(ask) as run:
        assert [stream.name for stream in run.result(30)] == ["Baseline", "Steered", "Ablated"]


def texts(answer: dict[str, Any]) -> list[str]:
    return [stream["text"] for stream in answer["streams"]]


def opposite(user: int) -> dict[str, Any]:
    """Plans that pull every second user the other way."""
    feature, sign = (SELF, 1) if user % 2 else (RETURN, -1)
    return {
        "prompt": ("def ", "import os", "class A:\n", "x = ")[user % 4],
        "edits": [{"feature": feature, "strength": sign * (1.0 + user / 8)}],
        "max_new_tokens": 8 + user % 5,
        "temperature": (0.0, 1.0)[user % 3 == 0],
        "seed": user,
    }


def test_two_threads_with_opposite_plans_get_what_each_gets_alone(service: Service):
    plans = [opposite(user) | {"max_new_tokens": 24} for user in (1, 2)]
    alone = [texts(service.steer(**plan)) for plan in plans]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert [texts(found) for found in pool.map(lambda plan: service.steer(**plan), plans)] == alone
    assert alone[0][1] != alone[0][0], "the edits do something"
    assert alone[0] != alone[1]


def test_twenty_people_at_once_over_the_wire_get_what_each_gets_alone(service: Service, running: Any):
    from gradio_client import Client

    plans = [opposite(user) for user in range(20)]
    alone = [texts(service.steer(**plan)) for plan in plans]
    client = Client(running.url, verbose=False)
    engine = service.catalog.find().machine.get().engine
    jobs = [client.submit(**plan, api_name="/steer") for plan in plans]
    together = [texts(job.result(60)) for job in jobs]
    assert together == alone
    assert sum(steered != baseline for baseline, steered in alone) > 10
    assert engine.n_rows == 0


def test_presets_of_the_author_are_offered(service: Service):
    (preset,) = service.presets()
    assert preset == PRESET
    rows = [row.to_json() for row in preset.rows]
    assert texts(service.steer(preset.prompt, rows, max_new_tokens=3, positions=preset.positions))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "presets.json"), (b"[]", "presets.json"), (b'{"presets": 3}', "no list of at most 200 'presets'"), (b"\xff\xfe", "presets.json"),
        (b"[" * 100_000, "presets.json"), (b'{"presets": [{"name": "x", "edits": [{"feature": -1}]}]}', "feature=-1"),
        (b'{"presets": [{"name": "x", "edits": [{"feature": 1, "strength": 1e999}]}]}', "strength=inf"),
        (b'{"presets": [{"name": "x"}]}', "is no preset"),
    ],
)  # fmt: skip
def test_damaged_presets_give_words(
    service: Service,
    tab: Any,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    words: str,
):
    copy = shutil.copytree(folder, tmp_path / "planted")
    (copy / PRESETS).write_bytes(content)
    with ThreadPoolExecutor(1) as nobody:  # nothing of it is loaded
        served = Served("damaged", Given(str(copy)), nobody, Machines())
        monkeypatch.setattr(service.catalog, "find", lambda name="": served)
        with pytest.raises(RequestError, match=words):
            service.presets()
        assert tab.presets("damaged").visible is False
        assert len(tab.preset_chosen("damaged", "x")) == 4


ASKS = [
    Ask(PROMPT, EDITS, 6),
    Ask("x = 'a\\b' \"c\"", [{"feature": OS, "operation": "clamp", "strength": 2.123456789, "unit": "latent"}], 6, 0.7, 0.913, 5),
    Ask(
        "-x {y}", [{"feature": CLASS, "strength": -0.5, "unit": "norm", "when": IMPORT}, {"feature": OS, "on": False}], 6,
        sweep=[0.25, 4], ablation=True, instruction=" # 'quoted' ", positions="generated",
    ),
    Ask("def f():", [{"feature": RETURN, "operation": "raise"}, {"feature": SELF, "operation": "scale", "strength": 3}], 6),
    Ask("import os", [{"feature": SELF, "operation": "ablate"}, {"feature": IMPORT, "strength": 0.0}], 6),
    Ask("import os", [{"feature": IMPORT, "operation": "ablate"}], 6),
]  # fmt: skip


def service_texts(service: Service, ask: Ask) -> dict[str, str]:
    with service.start_steering(ask) as run:
        return {stream.name: stream.text for stream in run.result(60)}


@pytest.mark.parametrize("ask", ASKS)
def test_what_is_copied_gives_the_same_texts(service: Service, ask: Ask, capsys: pytest.CaptureFixture[str]):
    wanted = service_texts(service, ask)
    snippet = steer_snippet(service.catalog.find().origin, ask)
    assert run_python(snippet) == wanted
    name, *arguments = shlex.split(snippet.command)
    assert name == "hf-sae"
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert not caught.value.code, err
    assert {stream["name"]: stream["text"] for stream in json.loads(out)["streams"]} == wanted


def run_python(snippet: Snippet) -> dict[str, str]:
    """The texts that a snippet prints: its last words are the name, the gauge and the text of each stream."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(snippet.python, "<copied>", "exec"), {"__name__": "__main__"})
    lines = out.getvalue().splitlines()
    return {line.split(" Coherence(")[0]: eval(line.split(") ", 1)[1]) for line in lines}


def test_words_alone_are_copied_without_edits(service: Service):
    ask = Ask(PROMPT, [], 4, instruction="# a class")
    snippet = steer_snippet(service.catalog.find().origin, ask)
    assert run_python(snippet) == service_texts(service, ask)
    assert snippet.command == "", "the command wants edits"


def test_text_of_a_request_is_text_in_its_copies():
    origin = Origin("user/sae", host="org/model")
    nasty = "'\"\\\n$(rm) `x` {y} \u2028"
    snippet = steer_snippet(origin, Ask(nasty, EDITS, instruction=nasty))
    compile(snippet.python, "<copied>", "exec")
    assert f"--prompt={nasty}" in shlex.split(snippet.command)


def test_a_link_brings_back_edits_and_options():
    edits = [
        {"feature": 3, "operation": "clamp", "strength": -2.5, "unit": "norm", "on": False, "sae": "", "when": 7},
        {"feature": 4, "operation": "add", "strength": 1.23456789, "unit": "max", "on": True, "sae": "user/b", "when": None},
    ]  # fmt: skip
    ask = Ask("p & q = ü\n", edits, 17, 0.35, 0.9, 12, [0.25, 4.0], True, "say <b>", "generated", True)
    link = read_link(address(ask, "user/a"))
    assert (link.tab, link.sae, link.prompt) == ("steer", "user/a", ask.prompt)
    assert [EditRow.from_json(row).to_json() for row in link.edits] == edits
    wanted = {name: getattr(ask, name) for name in OPTIONS} | {"sweep": True}
    assert options_of(link) == wanted
    assert address(Ask("p", ()), "") == "tab=steer&prompt=p", "what is as by default is left out"


def test_options_that_cannot_be_are_left_out():
    hostile = {
        "max_new_tokens": 10**6, "temperature": "hot", "top_p": 0, "seed": -1, "sweep": 1, "ablation": "yes", "instruction": 3,
        "positions": "x", "chat": None, "other": 1,
    }  # fmt: skip
    link = read_link({"options": json.dumps(hostile)})
    assert link.options == hostile
    assert options_of(link) == {}
    assert options_of(read_link({"options": json.dumps(hostile | {"seed": 4})})) == {"seed": 4}


@pytest.mark.parametrize("box", ["", "[", "{}", "1", "null", "[" * 100_000, '[1, "x"]'])
def test_a_box_of_edits_that_holds_none_is_empty(box: str):
    assert rows_of(box) == []


class Tags(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        """Tags and names of attributes, which no text of data may change."""
        return [(tag, sorted(attrs)) for tag, attrs in self.tags]


HOSTILE = [
    EVIL,
    LABEL,
    "\"'><script>window.broken=1</script>",
    "' onfocus=window.broken=1 x='",
    '" autofocus onfocus="x',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_data_is_text_in_the_table(text: str):
    def drawn(text: str) -> Tags:
        rows = [EditRow(3, sae=text), EditRow(4, "clamp", 1.23456789, when=5)]
        return Tags(edit_table(rows, [text, None], [2.0, None]))

    found = drawn(text)
    assert found.shape == drawn(re.sub(r"\S", "x", text)).shape
    assert f"“{text}”" in found.text
    edits = [attrs for _, attrs in found.tags if "data-edit" in attrs]
    assert [edit["data-of"] for edit in edits] == [text, ""]
    strengths = [attrs["value"] for _, attrs in found.tags if attrs.get("data-field") == "strength"]
    assert strengths == ["1", "1.23456789"], "to the last digit: the page reads it back"
    assert "= 2" in found.text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_data_is_text_below_a_token(text: str):
    def drawn(text: str) -> Tags:
        latents = [{"sae": text, "latent": 3, "activation": 0.5}, {"sae": "b", "latent": 3, "activation": 0.25}]
        return Tags(token_features({"text": text, "latents": latents}, [text, "another"]))

    found = drawn(text)
    assert found.shape == drawn(re.sub(r"\S", "x", text)).shape
    assert found.text.count(text) == 2
    assert "“another”" in found.text
    assert [attrs["data-of"] for _, attrs in found.tags if "data-add" in attrs] == [text, "b"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_data_is_text_in_the_columns(text: str):
    def drawn(text: str) -> Tags:
        stream = Stream(text, text, text, (GeneratedToken(1, text, 0.1, 0.2, 0.3),), "failed", text)
        return Tags(columns([stream, replace(stream, tokens=(GeneratedToken(2, text),))], Ask(text, [])))

    found = drawn(text)
    assert found.shape == drawn(re.sub(r"\S", "x", text)).shape
    assert found.text.count(text) >= 6


def test_numbers_that_json_does_not_have_are_none():
    token = GeneratedToken(1, "x", math.nan, math.inf, 0.5, (("planted", 3, math.inf),))
    found = stream_json(Stream("Steered", tokens=(token,)))
    json.dumps(found, allow_nan=False)
    assert found["tokens"][0]["surprise"] is None
    assert found["tokens"][0]["latents"][0]["activation"] is None


def test_the_maximum_is_the_one_that_strengths_are_multiples_of(service: Service):
    assert service.recorded_maximum(IMPORT) == 1.0
    assert service.recorded_maximum(DEAD) is None
    assert service.recorded_maximum(10**6) is None


Handler = Callable[..., Any]


@pytest.fixture(scope="module")
def tab(service: Service) -> Any:
    """The tab, without a page around it that anybody sees."""
    gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf-sae[space]'")
    from hf_sae.space.page import Page
    from hf_sae.space.tabs.steer import Steer

    with gr.Blocks(analytics_enabled=False):
        box = gr.Textbox()
        page = Page(service, box, gr.Tabs(), box, box, box, box)
        return Steer(page)


def test_a_feature_is_added_with_the_unit_that_it_has(tab: Any):
    edits, table = tab.added("planted", "[]", SELF)
    (row,) = json.loads(edits)
    assert (row["feature"], row["strength"], row["unit"], row["sae"]) == (SELF, 2.0, "max", "")
    assert LABEL in Tags(table).text
    edits, _ = tab.added("planted", edits, DEAD)
    assert [(row["feature"], row["unit"]) for row in json.loads(edits)] == [(SELF, "max"), (DEAD, "norm")]
    for feature in (None, -1, math.nan, math.inf, 2**31):
        assert tab.added("planted", edits, feature)[0] == edits


def test_a_feature_of_another_autoencoder_keeps_its_name_and_loads_nothing(tab: Any, service: Service):
    before = [served.name for served in service.catalog.served()]
    edits, _ = tab.changed("planted", "[]", json.dumps({"add": SELF, "sae": "user/other"}))
    edits, _ = tab.changed("planted", edits, json.dumps({"add": SELF, "sae": "planted"}))
    assert [(row["feature"], row["sae"]) for row in json.loads(edits)] == [(SELF, "user/other"), (SELF, "")]
    edits, _ = tab.changed("planted", edits, json.dumps({"remove": 0}))
    assert [row["sae"] for row in json.loads(edits)] == [""]
    assert [served.name for served in service.catalog.served()] == before


@pytest.mark.parametrize("sae", ["nobody", "", "../x"])
@pytest.mark.parametrize(
    "message", ["", "[", "[1]", "1", '{"add": "x"}', '{"add": 1e999}', '{"remove": 9}', '{"remove": null}']
)
def test_messages_that_make_no_sense_break_nothing(tab: Any, sae: str, message: str):
    assert len(tab.changed(sae, '[{"feature": 1}]', message)) == 2
    assert len(tab.drawn(sae, [{"feature": 1}])) == 2
    assert tab.clicked(sae, message, None) == ""


def test_a_form_that_is_half_filled_in_still_has_an_address(tab: Any):
    asked = [PROMPT, json.dumps(EDITS), None, None, None, None, None, None, None, None, None]
    query, copied = tab.said("planted", tab.ask(*asked))
    assert read_link(query).prompt == PROMPT
    assert copied == ["", ""]
