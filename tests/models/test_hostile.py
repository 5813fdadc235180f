"""Folders that are not ours, or not meant well."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from hf_sae.models import AutoSAE, CheckpointError, ConfigError, TopKSAE
from tests.training.planted import topk


class Exploit:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "executed"
    topk().save_pretrained(tmp_path / "sae")
    (tmp_path / "sae" / "model.safetensors").unlink()
    (tmp_path / "sae" / name).write_bytes(pickle.dumps({"encoder.weight": Exploit(mark)}))
    for load in (AutoSAE.from_pretrained, TopKSAE.from_pretrained):
        with pytest.raises(CheckpointError, match="pickles are not read"):
            load(tmp_path / "sae")
    assert not mark.exists()


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    topk().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    assert isinstance(AutoSAE.from_pretrained(tmp_path), TopKSAE)
    assert not (tmp_path / "executed").exists()


def test_missing_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        AutoSAE.from_pretrained(tmp_path / "nowhere")
    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match="hf_sae_topk"):
        AutoSAE.from_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_text("{ cut")
    with pytest.raises(CheckpointError):
        AutoSAE.from_pretrained(tmp_path / "gpt2")


def test_another_architecture_under_a_changed_name(tmp_path: Path) -> None:
    topk().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "hf_sae_jumprelu"}))
    with pytest.raises((CheckpointError, ConfigError)):
        AutoSAE.from_pretrained(tmp_path)


def test_sizes_from_outside_are_bounded(tmp_path: Path) -> None:
    topk().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_sae": 2**40}))
    with pytest.raises(ConfigError, match="d_sae"):
        AutoSAE.from_pretrained(tmp_path)


def test_damaged_feature_statistics(tmp_path: Path) -> None:
    sae = topk()
    sae.feature_stats = {"density": torch.rand(48), "maximum": torch.rand(48)}
    sae.save_pretrained(tmp_path)
    stats = load_file(tmp_path / "feature_stats.safetensors")
    save_file({**stats, "density": torch.rand(3)}, tmp_path / "feature_stats.safetensors")
    with pytest.raises(CheckpointError, match="density"):
        AutoSAE.from_pretrained(tmp_path)
    (tmp_path / "feature_stats.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="feature_stats"):
        AutoSAE.from_pretrained(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_saved_files_have_the_permissions_of_other_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        topk().save_pretrained(tmp_path / "sae")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "sae").iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}
