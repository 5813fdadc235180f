"""A link says everything, and says it back; what makes no sense in an address is left out."""

from __future__ import annotations

import json
import random
from urllib.parse import urlsplit

import pytest

from hf_sae.space.links import MAX_EDITS, MAX_LINK_TEXT, MODES, TABS, Link, read_link


ALPHABET = [*"aZ0 \n\t&=?#%+/\\\"'<>;:.-_~", "é", "日", "🦜", "\u202e", "\x00", "\ud800", "\udc80", "\u2028"]


def random_link(rng: random.Random) -> Link:
    def text(most: int) -> str:
        return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(most)))

    edits = tuple(
        {"sae": text(5), "feature": rng.randrange(100), "strength": rng.uniform(-9, 9), "on": True, "when": None}
        for _ in range(rng.randrange(3))
    )
    feature = rng.choice([None, 0, rng.randrange(2**31)])
    return Link(rng.choice(TABS), text(20), feature, text(40), rng.choice(MODES), text(40), text(80), edits)


def test_a_link_read_back_is_the_same_state():
    rng = random.Random(0)
    for _ in range(500):
        link = random_link(rng)
        query = link.query()
        assert read_link(query) == link
        assert read_link("?" + query) == link
        assert query.isascii()
        assert urlsplit(f"https://x.y/?{query}").query == query, "nothing in it ends the query"


def test_a_short_state_is_a_short_link():
    assert Link().query() == ""
    assert Link(feature=12).query() == "feature=12"
    assert Link("search", q="a b").query() == "tab=search&q=a%20b"
    assert Link(edits=({"feature": 1},)).query() == "edits=%5B%7B%22feature%22%3A1%7D%5D"


@pytest.mark.parametrize(
    "query",
    [
        "tab=nowhere", "feature=-1", "feature=1e3", "feature=nan", "feature=٣", "feature=99999999999999999999", "feature=2147483648",
        "mode=x", "edits=[", "edits=1", "edits=[1]", 'edits=[{"a":{"b":1}}]', 'edits=[{"a":NaN}]', 'edits=[{"a":1e999}]',
        "edits=" + "[" * 100_000, "unknown=1", "&&&=&", "=", "%", "%ff%fe", "__theme=dark", "&".join("a=1" for _ in range(1000)),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_left_out(query: str):
    assert read_link(query) == Link()


def test_what_is_too_long_is_cut():
    long = "x" * 10**6
    found = read_link({"prompt": long, "q": long, "sae": long, "against": long})
    assert (len(found.prompt), len(found.q), len(found.sae), len(found.against)) == (MAX_LINK_TEXT, 1000, 200, 1000)
    many = json.dumps([{"feature": i} for i in range(100)])
    assert len(read_link({"edits": many}).edits) == MAX_EDITS
    assert len(Link().at(prompt=long).query()) < 2100


def test_a_change_keeps_the_rest():
    link = Link("search", "user/repo", 3, "q")
    assert link.at(tab="explore") == Link("explore", "user/repo", 3, "q")
    assert link.at(tab="evil", feature=-3) == Link("explore", "user/repo", None, "q")
