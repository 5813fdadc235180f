"""Weights stand beside their own figures only: what contradicts them goes with a push and comes along with a pull."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_sae.hub import load_saes, save_card
from hf_sae.hub.companions import stale
from hf_sae.models import AutoSAE, TopKSAE
from tests.hub.test_cards import HISTORY, make_report
from tests.hub.test_round_trip import X, make, pull, push
from tests.local_hub.client import Client


SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
FIGURES = {
    "eval_results.json",
    "examples.json",
    "training_log.json",
    "feature_stats.safetensors",
    "assets/density.png",
}


def test_what_contradicts_new_weights_is_stale_and_nothing_else():
    mine = {"README.md", "notes.txt", "assets/photo.png", "model.fp16.safetensors", "layer_1/model.safetensors"}
    there = {"config.json", "model.safetensors", *SHARDS, *FIGURES, *mine}
    assert set(stale("", {"config.json", "model.safetensors"}, there)) == SHARDS | FIGURES
    assert set(stale("", {"config.json", *SHARDS, *FIGURES}, there)) == {"model.safetensors"}
    assert stale("", {"model.fp16.safetensors", "config.json"}, there) == [], (
        "a variant stands beside the usual weights"
    )
    fp16 = "model.fp16-00001-of-00002.safetensors"
    assert stale("", {fp16}, there) == ["model.fp16.safetensors"]
    assert stale("layer_1", {"layer_1/config.json", "layer_1/" + next(iter(SHARDS))}, there) == [
        "layer_1/model.safetensors"
    ]
    assert stale("", {"README.md"}, there) == []
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert set(stale("", {"config.json", "model.safetensors"}, adapter)) == adapter, (
        "it would be put on the new weights"
    )
    assert set(stale("", adapter, {"feature_stats.safetensors", "README.md"})) == {"feature_stats.safetensors"}


def described(folder: Path, seed: int = 0) -> TopKSAE:
    sae = make(folder, seed, d_sae=64)
    sae.feature_stats = {"density": torch.full((64,), 0.01), "maximum": torch.ones(64)}
    sae.save_pretrained(folder)
    example = {"feature": 3, "contexts": [{"tokens": ["a"], "activations": [1.0]}]}
    save_card(folder, sae, make_report(), examples=[example], history=HISTORY, metadata={"license": "mit"})
    return sae


def test_new_weights_on_the_hub_do_not_stand_beside_old_ones_and_their_figures(plain: Client, tmp_path: Path):
    described(tmp_path / "sae")
    assert plain.cli("push", str(tmp_path / "sae"), "tester/fresh").returncode == 0
    assert set(plain.hub.files("tester/fresh")) >= FIGURES
    sae = make(tmp_path / "other", 7, d_sae=64)
    push(plain, tmp_path / "other", "tester/fresh", max_shard_size="2KB")
    files = plain.hub.files("tester/fresh")
    assert not {"model.safetensors", *FIGURES} & set(files)
    assert pull(plain, "tester/fresh")["bits"] == sae(X).reconstruction.tolist()
    assert "## Evaluation" not in files["README.md"].decode()


def test_a_pull_brings_card_and_figures_so_that_a_push_loses_none(plain: Client, tmp_path: Path):
    described(tmp_path / "sae")
    assert plain.cli("push", str(tmp_path / "sae"), "tester/saes", "--subfolder", "layer_1").returncode == 0
    before = dict(plain.hub.files("tester/saes"))
    assert plain.cli("pull", "tester/saes:layer_1", str(tmp_path / "back")).returncode == 0
    here = {
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*") if path.is_file()
    }
    assert here == {name.removeprefix("layer_1/") for name in before if name.startswith("layer_1/")}
    assert json.loads((tmp_path / "back" / "examples.json").read_text())[0]["feature"] == 3
    assert AutoSAE.from_pretrained(tmp_path / "back").feature_stats is not None
    assert plain.cli("push", str(tmp_path / "back"), "tester/saes", "--subfolder", "layer_1").returncode == 0
    after = plain.hub.files("tester/saes")
    assert after["layer_1/README.md"] == before["layer_1/README.md"]
    assert json.loads(after["config.json"])["index"]["layer_1"]["metrics"]["fvu"] == 0.25


def test_a_listing_of_a_folder_says_what_each_is_and_leaves_checkpoints_out(tmp_path: Path):
    for n in (10, 9):
        described(tmp_path / "sweep" / f"layer_{n}")
        make(tmp_path / "sweep" / "checkpoint-5" / f"layer_{n}")
    saes = load_saes(str(tmp_path / "sweep"))
    assert list(saes) == ["layer_9", "layer_10"]
    assert saes.index["layer_9"]["d_sae"] == 64
    assert saes.index["layer_9"]["metrics"] == {"l0": 4.0, "fvu": 0.25}
    single = load_saes(str(tmp_path / "sweep" / "layer_9"))
    assert single.index["."] == saes.index["layer_9"]
    (tmp_path / "sweep" / "layer_9" / "eval_results.json").write_text('{"metrics": {"fvu": "<b>", "l0": [1]}}')
    assert "metrics" not in load_saes(str(tmp_path / "sweep")).index["layer_9"]
