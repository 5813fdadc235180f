"""The page of a card runs nothing, asks nobody, and holds its pictures."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from hf_sae.errors import CheckpointError
from hf_sae.hub.preview import write_page


def test_a_page_holds_its_pictures_and_lets_no_script_run(tmp_path: Path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a.png").write_bytes(b"picture")
    text = "---\nlicense: '<b>mit</b>'\n---\n# A <i>title</i>\n\n| a | b |\n| :-- | --: |\n| 1 | 2 |\n\n![words](./assets/a.png)\n\n![b](./assets/b.png)\n"
    text += "<script>alert(1)</script>\n![out](./assets/../../secret.png)\n"
    page = write_page(text, tmp_path, tmp_path / "card.html", {"b.png": b"drawn"}).read_text()
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in page
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; img-src data: https:; style-src", page)
    assert page.index("Content-Security-Policy") < page.index("<script>"), (
        "what comes before a policy is not held by it"
    )
    assert "&lt;b&gt;mit&lt;/b&gt;" in page
    assert "<title>A &lt;i&gt;title&lt;/i&gt;</title>" in page
    assert '<td style="text-align:right">2</td>' in page
    assert base64.b64encode(b"drawn").decode() in page
    assert page.count("data:image/png") == 2


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot write"):
        write_page("# A\n", tmp_path, tmp_path / "none" / "card.html")
