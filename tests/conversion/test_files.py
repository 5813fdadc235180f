"""Texts beside the weights: what is no config is refused before it takes memory or time."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sae.conversion import open_files
from hf_sae.errors import ConversionError


BOMB = "- &a0 {x: 1}\n" + "".join(
    f"- &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)  # 9 to the 19 entries


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", [f"l:\n{BOMB}", "a: &a [1]\nb: *a\n", "a: [&x 1, *x]\n"])
def test_yaml_with_aliases_is_refused_before_they_are_followed(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConversionError, match="aliases"):
        open_files(str(tmp_path)).yaml("config.yaml")


def test_plain_yaml_is_read_with_signs_that_look_like_aliases(tmp_path: Path):
    (tmp_path / "config.yaml").write_text('a: "& or *"\nb: x * y\nc: 2**3\nd: {e: [1, 2.5]}\n')
    found = open_files(str(tmp_path)).yaml("config.yaml")
    assert found == {"a": "& or *", "b": "x * y", "c": "2**3", "d": {"e": [1, 2.5]}}


@pytest.mark.parametrize(
    "text", ["a: 2024-99-99\n", "a: !!python/object/apply:os.getcwd []\n", "a: [1\n", "- 1\n", ""]
)
def test_yaml_that_is_no_mapping_of_plain_values(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConversionError, match=r"config\.yaml"):
        open_files(str(tmp_path)).yaml("config.yaml")


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "", "[1]", "{", '{"a": 1} x'])
def test_json_that_is_no_object(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=r"config\.json"):
        open_files(str(tmp_path)).json("config.json")
