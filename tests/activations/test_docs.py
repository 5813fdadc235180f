"""The examples of docs/cache.md run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_sae import AutoSAE
from hf_sae.activations import Manifest


DOC = Path(__file__).parents[2] / "docs" / "cache.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) == 2  # the third, indented one, needs a large host and its quantiser
    for block in blocks:
        exec(block, {})
    assert Manifest.open("acts").n_tokens == 20_000
    assert AutoSAE.from_pretrained("sae").config.provenance["cache"]["n_tokens"] == 20_000
