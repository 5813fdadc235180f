"""How files are asked for, and texts beside the weights: what is no config is refused before it takes memory or time."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sae import AutoSAE
from hf_sae.conversion import open_files
from hf_sae.errors import CheckpointError, ConversionError
from tests.conversion.written import WRITERS, D, F


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


@pytest.mark.parametrize("form", ["sparsify", "gemma_scope", "gemma_scope_2", "qwen_scope", "openai"])
def test_names_of_folders_count_from_inside_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    """`cd layers.1 && hf-sae info .`: hook, host and width stand in names above the asked one."""
    root, place, file = WRITERS[form](tmp_path, D, F)
    expected = AutoSAE.from_pretrained(root, subfolder=place).config
    monkeypatch.chdir(file.parent)
    name = "." if (root / place).is_dir() else file.name
    found = AutoSAE.from_pretrained(name).config
    assert (found.hook_in, found.base_model, found.d_sae) == (expected.hook_in, expected.base_model, F)
    assert str(tmp_path) not in str(found.provenance), "a path of this machine"


@pytest.mark.parametrize("form", WRITERS)
def test_the_file_with_the_tensors_stands_for_its_checkpoint(tmp_path: Path, form: str):
    root, place, file = WRITERS[form](tmp_path, D, F)
    expected = AutoSAE.from_pretrained(root, subfolder=place)
    if form == "llama_scope":  # its file lies in a folder of its own below the checkpoint's
        with pytest.raises(CheckpointError, match="no checkpoint of a known format"):
            AutoSAE.from_pretrained(str(file))
        return
    asked = {"name": str(file)}, {"name": str(root), "subfolder": file.relative_to(root).as_posix()}
    for options in asked:
        found = AutoSAE.from_pretrained(options.pop("name"), **options)
        assert found.W_enc.equal(expected.W_enc)
        assert found.config.hook_in == expected.config.hook_in
        assert list(found.config.provenance["conversion"]["sha256"].values()) == list(
            expected.config.provenance["conversion"]["sha256"].values()
        )


def test_a_file_of_ours_is_its_folders(tmp_path: Path):
    AutoSAE.from_pretrained(WRITERS["saelens"](tmp_path / "a", D, F)[2].parent).save_pretrained(tmp_path / "ours")
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(CheckpointError, match="it is a file, and ours are folders"):
            AutoSAE.from_pretrained(tmp_path / "ours" / name)
