from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from hf_sae.views import page, token_strip
from tests.views.everything import everything


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "&lt;b&gt;",
    "\x1b[31m\u202eevil\x00\u2066",
    "//evil.example/x",
)
VOID = {"input", "meta", "img", "br", "hr"}


class Skeleton(HTMLParser):
    """Elements and names of attributes in order, and the values of those that lead somewhere."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.targets += [value or "" for name, value in attrs if name in ("href", "src", "action", "style")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("said", HOSTILE)
def test_no_element_or_attribute_comes_from_data(said):
    plain, hostile = everything(re.sub(r"[^ ]", "x", said)), everything(said)
    for name in plain:
        expected, found = Skeleton(plain[name]), Skeleton(hostile[name])
        assert found.open == []
        assert found.found == expected.found, name
        assert found.targets == expected.targets, name
        assert not {"script", "img", "b", "style"} & {tag for tag, _ in found.found}


def test_what_does_not_print_is_shown():
    for document in everything("\x1b\u202e\x00\u200b").values():
        assert not set(document) & set("\x1b\u202e\x00\u200b")
    assert "\\x1b\\u202e\\x00\\u200b" in everything("\x1b\u202e\x00\u200b")["strip"]


@pytest.mark.parametrize(
    ("target", "kept"),
    [("?feature=3", True), ("#a", True), ("/x", True), ("https://huggingface.co/x", True), ("//evil.example", False),
     ("/\\evil.example", False), ("JaVaScRiPt:alert(1)", False), (" javascript:alert(1)", False), ("data:text/html,x", False),
     ("http://x", False), ("?a\nb", False)],
)  # fmt: skip
def test_links_lead_to_this_site_or_a_secure_one(target, kept):
    hrefs = [t for t in Skeleton(everything(target)["feature"]).targets if not t.startswith("width:")]
    assert hrefs == ([target] * 2 if kept else [])


def test_the_title_of_a_page_is_text():
    assert page("</title><script>", "").count("<script") == 0


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 tokens"):
        token_strip(["a", "b"], [1.0], maximum=1.0)


def test_the_same_values_give_the_same_text_and_ids_are_unique():
    assert everything("a") == everything("a")
    ids = [part.split('"')[0] for said in ("a", "b") for part in everything(said)["feature"].split(' id="')[1:]]
    assert len(ids) == len(set(ids)) > 10


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-30, 1e30])
def test_numbers_that_are_none_do_no_harm(number):
    for document in everything("a", number).values():
        assert Skeleton(document).open == []
        assert "nan" not in document.lower()
        assert "inf" not in document.lower().replace("info", "")
