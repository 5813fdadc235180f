"""Neuronpedia's layout, row by row against the dataset that it was made from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hf_sae.errors import DataError
from hf_sae.features.neuronpedia import NeuronpediaSource, export_neuronpedia
from hf_sae.features.reading import FeatureDataset

from . import toy_features
from .toy_features import example, feature


SOURCE = NeuronpediaSource("gpt2-small", "res-64", 1, "toy-release", "A toy", "someone", "account")


def write(folder: Path, sae_id: str = "layer_2") -> FeatureDataset:
    """127 latents of which two have examples, after one of another autoencoder."""
    features = [feature("layer_1", 5), *(feature(sae_id, i) for i in range(128))]
    examples = [example("layer_1", 5)]
    features.pop(61)  # a dataset need not know every latent, and its contexts may be there all the same
    for index in (0, 60, 127):
        examples += [example(sae_id, index, rank) for rank in range(2)]
        examples.append(
            example(sae_id, index, kind="quantile", bin=0, bin_min=0.0, bin_max=4.0, bin_share=0.25, doc_name="os.py")
        )
        examples += [example(sae_id, index, kind=kind) for kind in ("random", "zero")]
    toy_features.write(folder, {"features": features, "examples": examples})
    return FeatureDataset.open(folder)


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_latent_and_every_strong_context_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_sae.features.neuronpedia.BATCH", 50)
    dataset = write(tmp_path / "dataset")
    folder = export_neuronpedia(dataset, "layer_2", SOURCE, tmp_path / "out", progress=False)
    assert folder == tmp_path / "out" / "gpt2-small" / "1-res-64"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    batches = [f"{name}/batch-{i}.jsonl.gz" for name in ("activations", "features") for i in range(3)]
    assert found == sorted([*batches, "model.jsonl", "release.jsonl", "source.jsonl", "sourceset.jsonl"])
    rows = [row for i in range(3) for row in lines(folder / f"features/batch-{i}.jsonl.gz")]
    assert [row["index"] for row in rows] == [i for i in range(128) if i != 60]
    facts = dataset.feature("layer_2", 3).facts
    row = rows[3]
    assert (row["modelId"], row["layer"], row["creatorId"]) == ("gpt2-small", "1-res-64", "account")
    assert (row["frac_nonzero"], row["maxActApprox"]) == (facts["density"], facts["max_act"])
    assert (row["pos_str"], row["neg_values"]) == (facts["pos_tokens"], facts["neg_logits"])
    assert row["freq_hist_data_bar_values"] == [0.25, 0.75, 1.25]
    assert row["freq_hist_data_bar_heights"] == facts["hist_counts"]
    assert all(len(r["freq_hist_data_bar_values"]) == len(r["freq_hist_data_bar_heights"]) for r in rows)
    acts = [row for i in range(3) for row in lines(folder / f"activations/batch-{i}.jsonl.gz")]
    assert [row["index"] for row in acts] == [0, 0, 0, 127, 127, 127]
    assert len({row["id"] for row in acts}) == 6
    assert [(row["binMin"], row["binMax"], row["binContains"]) for row in acts[3:]] == [
        (-1, 130.5, -1),
        (-1, 130.5, -1),
        (0.0, 4.0, 0.25),
    ]
    for row in acts:
        assert len(row["tokens"]) == len(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
    assert acts[5]["dataSource"] == "os.py"


def test_descriptions_say_where_it_comes_from(tmp_path: Path):
    folder = export_neuronpedia(write(tmp_path / "dataset"), "layer_1", SOURCE, tmp_path / "out", progress=False)
    source = lines(folder / "source.jsonl")[0]
    assert (source["hfRepoId"], source["hfFolderId"], source["dataset"]) == ("user/saes", "layer_1", "org/text")
    assert (source["num_prompts"], source["num_tokens_in_prompt"]) == (31, 32)  # 1000 tokens
    assert lines(folder / "release.jsonl")[0]["name"] == "toy-release"
    assert lines(folder / "sourceset.jsonl")[0]["releaseName"] == "toy-release"
    assert lines(folder / "model.jsonl")[0]["id"] == "gpt2-small"


def test_names_that_are_paths_and_folders_in_use_are_refused(tmp_path: Path):
    for wrong in ({"model": "../x"}, {"source_set": "a/b"}, {"release": ""}, {"layer": -1}):
        with pytest.raises(DataError, match=f"{next(iter(wrong))}="):
            NeuronpediaSource(**{**vars(SOURCE), **wrong})
    dataset = write(tmp_path / "dataset")
    with pytest.raises(DataError, match="'layer_1', 'layer_2'"):
        export_neuronpedia(dataset, "layer_3", SOURCE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_neuronpedia(dataset, "layer_2", SOURCE, tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="not empty"):
        export_neuronpedia(dataset, "layer_2", SOURCE, tmp_path / "out")


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = write(tmp_path / "dataset")
    monkeypatch.setattr("hf_sae.features.neuronpedia._activation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_neuronpedia(dataset, "layer_2", SOURCE, tmp_path / "out", progress=False)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
