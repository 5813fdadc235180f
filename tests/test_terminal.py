from __future__ import annotations

import io

import pytest

from hf_sae.shades import terminal_colour
from hf_sae.terminal import Strip, columns, has_colour, shorten, visible


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_that_moves_the_cursor_gets_through() -> None:
    hostile = "\x1b[31m\x1b]0;title\x07\r\x08\x7f\x9b2J\u202e\u2066\u200b\U000e0001\x00"
    assert visible(hostile).isprintable()
    assert visible("\x1b[2J\u202e") == "\\x1b[2J\\u202e"
    assert visible("a\nb\tc é 猫") == "a⏎b→c é 猫"
    shown = str(Strip([hostile, "ok"], [1.0, 0.0], colour=True))
    assert shown.count("\x1b") == 2  # one shade, one reset
    assert "\x1b" not in str(Strip([hostile], [1.0], colour=False))


def test_without_colour_brackets_and_digits_say_how_strong() -> None:
    strip = Strip(["def", " f", "\n", " x", "<s>"], [10.0, 5.0, 0.0, -2.5, 0.0], special={4}, colour=False)
    assert str(strip) == "[def]9*[ f]4⏎[ x]-2⟨<s>⟩"
    assert str(Strip(["a", "b"], [1.0, 1.0], maximum=9.0, colour=False)) == "[a]1*[b]1"
    assert str(Strip(["a"], [0.0], colour=False)) == "a"
    assert str(Strip([], [], colour=False)) == ""


def test_with_colour_a_token_is_shaded_underlined_and_the_strongest_bold() -> None:
    text = str(Strip(["a", "b", "c", "d"], [4.0, 1.0, 0.0, -4.0], colour=True))
    assert text == (
        "\x1b[48;5;88;38;5;231;4;1ma\x1b[0m"
        "\x1b[48;5;224;38;5;16;4mb\x1b[0m"
        "c"
        "\x1b[48;5;17;38;5;231;4md\x1b[0m"
    ).replace("48;5;17", f"48;5;{terminal_colour('#08306B')[0]}")  # fmt: skip
    assert columns(text) == 4


def test_only_the_tokens_around_the_peak_are_shown() -> None:
    tokens, activations = [chr(97 + i % 26) for i in range(40)], [float(i == 20) for i in range(40)]
    shown = str(Strip(tokens, activations, peak=20, colour=False))
    assert shown == "… " + "".join(tokens[8:20]) + "[u]9*" + "".join(tokens[21:33]) + " …"
    assert str(Strip(tokens, activations, peak=2, window=2, colour=False)) == "abcde …"


def test_lines_are_wrapped_by_columns_not_characters() -> None:
    lines = str(Strip(["猫"] * 100, [0.0] * 100, colour=False)).splitlines()
    assert [columns(line) for line in lines] == [80, 80, 40]
    assert columns(str(Strip(["猫"] * 50, [0.0] * 50, colour=False, width=9)).splitlines()[0]) == 8
    assert columns("e\u0301") == 1
    assert (shorten("猫猫猫", 5), shorten("猫猫", 4), shorten("abcdef", 4)) == ("猫猫…", "猫猫", "abc…")


@pytest.mark.parametrize(
    ("environment", "stream", "expected"),
    [
        ({}, Terminal(), True),
        ({}, io.StringIO(), False),
        ({"NO_COLOR": "1"}, Terminal(), False),
        ({"NO_COLOR": ""}, Terminal(), True),
        ({"TERM": "dumb"}, Terminal(), False),
    ],
)
def test_colour_needs_a_terminal_that_wants_it(monkeypatch, environment, stream, expected) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_colour(stream) is expected
