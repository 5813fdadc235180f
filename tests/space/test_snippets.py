"""What a view gives to copy runs as it stands, and finds what the view shows."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_sae.cli import main
from hf_sae.space.service import Service
from hf_sae.space.snippets import Origin, Snippet, feature_snippet, inspect_snippet, lines_of, search_snippet
from tests.space.planted import CLASS, IMPORT, OS, RETURN


NASTY = "import os\n\"'\\ {x} 🦜 \ud800 $(rm) `x` </script>"


def python(snippet: Snippet) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(snippet.python, "<copied>", "exec"), {"__name__": "__main__"})
    return out.getvalue()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[[Snippet], str]:
    def run(snippet: Snippet) -> str:
        name, *arguments = shlex.split(snippet.command)
        assert name == "hf-sae"
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def origin(service: Service) -> Origin:
    return service.catalog.find().origin


def test_the_origin_is_what_was_given(origin: Origin, folder: Path):
    assert origin == Origin(str(folder), "", "planted", f"{folder}-features", None)


def test_a_feature(origin: Origin, command: Callable[[Snippet], str]):
    snippet = feature_snippet(origin, IMPORT, "2")
    assert "'import os" in python(snippet)
    assert "Steered" in command(snippet)


@pytest.mark.parametrize(
    ("mode", "query", "against", "first"),
    [
        ("words", "start of an import", "", IMPORT),
        ("promoted", " return", "", RETURN),
        ("prompt", "os os os", "", None),
        ("contrast", "class A:\nclass B:", "x = y\nz = y", CLASS),
    ],
)
def test_every_search(
    origin: Origin, command: Callable[[Snippet], str], mode: str, query: str, against: str, first: int | None
):
    snippet = search_snippet(origin, mode, query, against, limit=3)
    wanted = f"planted {OS if first is None else first} "
    assert wanted in python(snippet)
    if snippet.command:
        assert wanted in command(snippet)
    assert bool(snippet.command) == (mode != "contrast")


def test_reading_a_text(origin: Origin):
    assert f"{IMPORT}:1" in python(inspect_snippet(origin, "import os", 2))


def test_text_of_any_kind_is_a_text_and_not_code(origin: Origin, command: Callable[[Snippet], str]):
    for query in (NASTY, "-x", "--json", "'''"):
        assert compile(search_snippet(origin, "words", query).python, "<copied>", "exec")
        assert shlex.split(search_snippet(origin, "words", query).command)[-1] == query
    assert command(search_snippet(origin, "words", "--help me", limit=1))
    assert command(search_snippet(origin, "prompt", "-x import", limit=1))
    assert compile(inspect_snippet(origin, NASTY, 5).python, "<copied>", "exec")


def test_without_a_feature_dataset_the_autoencoder_alone_is_loaded(origin: Origin):
    bare = Origin(origin.sae)
    assert "tensor" in python(feature_snippet(bare, IMPORT))
    assert f"{IMPORT}:1" in python(search_snippet(bare, "words", "import os"))


def test_of_the_hub_with_a_host_of_its_own():
    far = Origin("user/saes", "layer_1", "layer_1", "user/saes-features", "org/model")
    assert "load_host('org/model')" in inspect_snippet(far, "x", 5).python
    assert "subfolder='layer_1'" in inspect_snippet(far, "x", 5).python
    assert "--sae user/saes:layer_1 --host org/model" in search_snippet(far, "prompt", "x").command


def test_lines_of_a_box():
    assert lines_of("a\n\n b \n") == ["a", " b "]
