"""`hf-sae search`: what is found is shown within 80 columns with its reason, and every end says how to go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from hf_sae.cli import main
from hf_sae.features.manifest import SAESource
from hf_sae.features.writing import FeatureWriter
from hf_sae.terminal import columns
from tests.features.toy_features import ROWS, SAES, example, explanation, feature


HOSTILE = ["\x1b[31m", "\u202e", "import", "x" * 300, "日本" * 50, "\n"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    ids = {"tokens": HOSTILE, "token_ids": [0] * 6, "acts": [0.0, 0.25, 0.5, 0.0, 0.75, 0.0], "max_pos": 4}
    rows = [r for r in ROWS["examples"] if r["sae_id"] == "layer_2"]
    with FeatureWriter(tmp_path / "d", SAES) as writer:
        writer.append("features", [row | {"max_act": 0.75} for row in ROWS["features"]])
        writer.append("examples", [example(index=3, text="".join(HOSTILE), **ids), *rows])
        writer.append("explanations", [explanation(index=3, text="import\x1b[2J " + "long " * 100)])
    return tmp_path / "d"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["search", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_hits_fit_80_columns_and_nothing_in_them_acts_on_the_terminal(run: Any, folder: Path):
    code, out, err = run(folder, "import", "--limit", "1")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert max(map(columns, lines)) <= 80
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert lines[0] == "layer_1 3  1 in 333 tokens, maximum 0.75"
    assert lines[1].startswith('  "import\\x1b[2J long')
    assert "  label: [import]\\x1b[2J long" in out
    assert "  promoted token 2: [import]" in out
    assert "[import]6" in out, "shade of the maximum: 0.5 of 0.75"
    assert lines[-1] == 'Next: hf-sae steer user/saes --subfolder layer_1 --feature 3=2x --prompt "…"'
    assert (folder.parent / "home" / "hf_sae" / "index").is_dir()


def test_json_is_one_object_with_the_reasons(run: Any, folder: Path):
    code, out, _ = run(folder, "--promotes", " os", "--json", "--max-density", "0.003", "--sae-id", "layer_1")
    found = json.loads(out)
    assert (code, out.count("\n")) == (0, 1)
    assert [(hit["sae_id"], hit["feature"]) for hit in found["hits"]] == [("layer_1", 0), ("layer_1", 3)]
    reason = {"kind": "promoted token", "snippet": " os", "spans": [[0, 3]], "value": 1.875}
    assert found["hits"][0]["reasons"] == [reason]


def test_an_empty_result_suggests_what_to_try(run: Any, folder: Path):
    code, out, _ = run(folder, "zebra crossing", "--min-density", "0.1")
    assert code == 0
    assert out.startswith("No feature was found.\n\nNext: try fewer bounds on density")
    assert "one of its words alone" in out
    code, out, _ = run(folder, "zebra", "--json")
    assert json.loads(out)["hits"] == []
    assert len(json.loads(out)["suggestions"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of QUERY, --by-prompt TEXT and --promotes TOKEN"),
        (["x", "--promotes", "y"], "give one of QUERY"),
        (["x", "--sae-id", "layer_9"], "Did you mean 'layer_"),
        (["x", "--min-density", "2"], "0 to 1"),
        (["--by-prompt", "x"], "add --sae-id, one of 'layer_1', 'layer_2'"),
        (["--by-prompt", "x", "--sae-id", "layer_2"], "add --sae REPO_OR_PATH"),
    ],
)
def test_mistakes_end_with_code_2_and_say_what_to_do(run: Any, folder: Path, arguments: list[str], message: str):
    code, out, err = run(folder, *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_a_folder_without_features_is_an_error(run: Any, tmp_path: Path):
    code, _, err = run(tmp_path, "x")
    assert code == 2
    assert "no feature dataset" in " ".join(err.split())


def test_by_prompt_reads_the_autoencoder_that_is_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sae: Any, host: Any, tokenizer: Any
):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    sae.save_pretrained(tmp_path / "sae")
    with FeatureWriter(tmp_path / "d", {"layer_0": SAESource(d_sae=40)}) as writer:
        writer.append("features", [feature("layer_0", i, nn_idx=[1, 2]) for i in range(40)])
    wanted = ["--by-prompt", "def close(self)", "--sae", tmp_path / "sae", "--host", tmp_path / "host"]
    code, out, _ = run(tmp_path / "d", *wanted, "--sort", "max", "--limit", 3, "--json")
    hits = json.loads(out)["hits"]
    values = [hit["reasons"][0]["value"] for hit in hits]
    assert (code, len(hits)) == (0, 3)
    assert values == sorted(values, reverse=True)
    assert [hit["score"] for hit in hits] == pytest.approx(values)
    code, out, _ = run(tmp_path / "d", *wanted, "--limit", "2")
    assert "  fires here " in out
    assert out.splitlines()[-1].startswith(f"Next: hf-sae steer {tmp_path / 'sae'} --feature ")
    assert max(map(columns, out.splitlines()[:-1])) <= 80
