"""Text outside the blocks of a card belongs to its reader, wherever it stands and whatever it looks like."""

from __future__ import annotations

import itertools
import random

import pytest

from hf_sae.errors import CheckpointError
from hf_sae.hub.blocks import Document, block, merge, parse


def card(*parts: str, header: str = "") -> Document:
    return parse(header + "\n\n".join(parts))


A, B, C = (block(name, f"text of {name}") for name in "abc")
BOMB = (
    "---\na: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefgh")) + "---\n"
)
NEW_A, NEW_B = block("a", "new a"), block("b", "new b")


def test_blocks_are_replaced_where_they_stand():
    merged = merge(card(NEW_A, NEW_B), card("before", B, "between", A, "after"))
    assert [part.text for part in merged.parts] == ["before", NEW_B, "between", NEW_A, "after"]


def test_what_is_new_comes_after_its_predecessor_and_what_is_gone_goes():
    merged = merge(card(NEW_A, NEW_B, C), card("x", A, "y"))
    assert [part.text for part in merged.parts] == ["x", NEW_A, NEW_B, C, "y"]
    assert [part.text for part in merge(card(NEW_B), card("x", A, "y")).parts] == [NEW_B, "x", "y"]


def test_any_text_around_blocks_survives_any_number_of_merges():
    rng = random.Random(0)
    for _ in range(200):
        own = [f"own {rng.random()} `code` <b>\n\n- list" for _ in range(3)]
        parts = [*own, A, B]
        rng.shuffle(parts)
        once = merge(card(NEW_A, NEW_B, C), card(*parts))
        twice = merge(card(NEW_A, NEW_B, C), parse(str(once)))
        assert str(once) == str(twice)
        kept = "\n\n".join(part.text for part in once.parts if part.name is None)
        assert all(text in kept for text in own)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- hf-sae:a:start -->\nmine",
        "mine\n<!-- hf-sae:a:end -->",
        "<!-- hf-sae:b:start -->\nmine\n<!-- hf-sae:a:end -->",
        "---\nnot a header\n---",
    ],
)
def test_lone_markers_are_text_and_swallow_nothing(text: str):
    for parts in itertools.permutations((text, A, "more")):
        merged = str(merge(card(NEW_A), card("first", *parts)))
        assert "mine" in merged or "not a header" in merged
        assert "more" in merged
        assert "new a" in merged


def test_a_block_that_stands_twice_stands_once():
    assert str(merge(card(NEW_A), card(A, "own", A))).count("new a") == 1


def test_lists_of_the_header_are_joined_and_stale_tags_go():
    fresh = Document({"tags": ["hf-sae", "topk"], "datasets": ["org/data"]}, ())
    before = Document({"tags": ["jumprelu", "mine"], "datasets": "own/data", "license": "mit"}, ())
    header = merge(fresh, before, frozenset({"jumprelu"})).header
    assert header == {"tags": ["hf-sae", "topk", "mine"], "datasets": ["org/data", "own/data"], "license": "mit"}


def test_a_base_model_set_by_hand_stays_where_none_is_known():
    assert merge(Document({}, ()), Document({"base_model": "org/x", "model-index": []}, ())).header == {
        "base_model": "org/x"
    }


def test_headers_are_read_in_every_usual_form():
    assert parse("---\r\nlicense: mit\r\n---\r\n# T").header == {"license": "mit"}
    assert parse("---\n---\n# T").header == {}
    assert parse("# T\n---\nx: 1\n---").header == {}
    for wrong in ("---\n- a\n---\n", "---\na: [\n---\n", "---\n!!python/object/apply:os.system [ls]\n---\n", BOMB):
        with pytest.raises(CheckpointError):
            parse(wrong)
