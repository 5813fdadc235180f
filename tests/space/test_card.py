"""A card is other people's text: it looks as its author meant, and nothing in it acts."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from hf_sae.space.card import render
from hf_sae.space.plain_html import KEPT, plain_html


class Seen(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<b onclick=alert(1)>x</b>", "<iframe src=//e.vil></iframe>",
        "<a href='javascript:alert(1)'>x</a>", "<svg><script>1</script></svg>", "<style>*{display:none}</style>", "</div></main><p>",
        "<details ontoggle=alert(1) open>x", "[x](javascript:alert(1))", "![x](https://e.vil/p.png)", "<form action=//e.vil><input>",
        "<scr<script>ipt>alert(1)</script>", "<!--><img src=x onerror=alert(1)>-->", "<a\x00href=javascript:alert(1)>x</a>",
        "<math><mi xlink:href='javascript:1'>", "<base href=//e.vil>", "<meta http-equiv=refresh content=0>", "<b/onclick=alert(1)>",
    ],
)  # fmt: skip
def test_nothing_in_a_card_acts(hostile):
    for markup in (
        render(hostile),
        plain_html(hostile),
        render(f"# Title\n\ntext {hostile} text\n\n| a |\n| - |\n| {hostile} |"),
    ):
        seen = Seen(markup)
        assert set(seen.tags) <= KEPT
        assert {name for name, _ in seen.attributes} <= {"href", "target", "rel"}
        assert all(str(value).startswith(("http", "#", "_blank", "noopener")) for _, value in seen.attributes)


def test_elements_of_our_cards_stay():
    text = "---\na: 1\n---\n# Title\n\n<!-- hf-sae:x:start -->\n<details><summary>All</summary>\n\n| a | b |\n| - | - |\n| 1 | `2` |\n\n</details>\n\n- <code>a<b>key</b></code>\n"
    markup = render(text)
    assert "hf-sae:x" not in markup
    assert "<details><summary>All</summary>" in markup
    assert "<td><code>2</code></td>" in markup
    assert "<code>a<b>key</b></code>" in markup
    assert Seen(markup).tags.count("details") == 1


def test_a_picture_is_its_description_and_a_file_of_the_repo_is_no_link():
    markup = render(
        "![How often](./assets/density.png) and [figures](eval_results.json), [paper](https://arxiv.org/abs/1)"
    )
    seen = Seen(markup)
    assert "img" not in seen.tags
    assert seen.text == "How often and figures, paper\n"
    assert [value for name, value in seen.attributes if name == "href"] == ["https://arxiv.org/abs/1"]


def test_what_is_not_closed_ends_with_the_card():
    assert plain_html("<details><b>x") == "<details><b>x</b></details>"
    assert plain_html("<b><i>x</b>y</i>") == "<b><i>x</i></b>y"
