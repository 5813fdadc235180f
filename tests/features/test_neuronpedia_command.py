"""`hf-sae neuronpedia`: which files come out, under which names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hf_sae.cli import main

from . import toy_features


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    return int(raised.value.code or 0)


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_one_autoencoder_with_names_from_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, out = toy_features.write(tmp_path / "toy"), tmp_path / "out"
    assert call("neuronpedia", data, "--output-dir", out, "--sae", "layer_2", "--creator", "Ada", "--json") == 0
    folder = out / "model" / "2-res-128"
    assert json.loads(capsys.readouterr().out)["folders"] == {"layer_2": str(folder)}
    names = ["release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl"]
    names += ["features/batch-0.jsonl.gz", "activations/batch-0.jsonl.gz"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(
        f"model/2-res-128/{name}" for name in names
    )
    rows = lines(folder / "features" / "batch-0.jsonl.gz")
    assert [row["index"] for row in rows] == [3, 127]
    assert {(row["modelId"], row["layer"], row["creatorId"]) for row in rows} == {("model", "2-res-128", "Ada")}
    assert rows[0]["maxActApprox"] == 6.5
    assert lines(folder / "release.jsonl")[0]["name"] == "toy"


def test_what_the_dataset_does_not_say_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, out = toy_features.write(tmp_path / "toy"), tmp_path / "out"
    command = ["neuronpedia", data, "--output-dir", out]
    for options, message in (
        ([], "give --model"),
        (["--model", "gpt2-small"], "has no layer: give --layer"),
        (["--sae", "layer_3"], "Did you mean 'layer_"),
        (["--model", "m", "--layer", "1", "--source-set", "x"], "would both be m/1-x"),
        (["--model", "../m", "--layer", "1"], "model='../m'"),
    ):
        assert call(*command, *options) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not out.exists()
    assert call(*command, "--model", "m", "--layer", "1", "--release", "r") == 0
    assert sorted(path.name for path in (out / "m").iterdir()) == ["1-res-128", "1-sae-64"]
    assert lines(out / "m" / "1-sae-64" / "release.jsonl")[0]["name"] == "r"
    assert "Neuronpedia" in capsys.readouterr().out.splitlines()[-1]
