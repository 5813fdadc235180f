"""Damaged checkpoints of every format: a typed error each, and no other exception escapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_sae import AutoSAE
from hf_sae.conversion import identify, open_files
from hf_sae.errors import CheckpointError, ConfigError
from tests.conversion.layouts import save, save_pt, weights


D, F = 8, 1024
Where = tuple[Path, str, Path]  # what to load, the subfolder, the file with the tensors


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def saelens(root: Path, d: int, f: int) -> Where:
    w = weights(d, f)
    config = {"architecture": "jumprelu", "d_in": d, "d_sae": f, "apply_b_dec_to_input": False}
    config |= {"metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2"}}
    _json(root / "a" / "cfg.json", config)
    save(root / "a" / "sae_weights.safetensors", w)
    return root, "a", root / "a" / "sae_weights.safetensors"


def sparsify(root: Path, d: int, f: int) -> Where:
    w = weights(d, f)
    _json(root / "layers.1" / "cfg.json", {"d_in": d, "num_latents": f, "k": 4})
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save(root / "layers.1" / "sae.safetensors", tensors)
    return root, "layers.1", root / "layers.1" / "sae.safetensors"


def dictionary_learning(root: Path, d: int, f: int) -> Where:
    w = weights(d, f)
    trainer = {
        "dict_class": "AutoEncoder",
        "activation_dim": d,
        "dict_size": f,
        "submodule_name": "resid_post_layer_1",
    }
    _json(root / "t" / "config.json", {"trainer": trainer, "buffer": {}})
    tensors = {"bias": w["b_dec"], "encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
    save_pt(root / "t" / "ae.pt", {**tensors, "decoder.weight": w["W_dec"].T.contiguous()})
    return root, "t", root / "t" / "ae.pt"


def gemma_scope(root: Path, d: int, f: int) -> Where:
    place = "layer_1/width_1k/average_l0_9"
    folder = root / "gemma-scope-2b-pt-res" / place
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{key: value.numpy() for key, value in weights(d, f).items()})
    return root / "gemma-scope-2b-pt-res", place, folder / "params.npz"


def gemma_scope_2(root: Path, d: int, f: int) -> Where:
    repo, place = root / "gemma-scope-2-1b-pt", "resid_post/layer_1_width_1k_l0_big"
    save(repo / place / "params.safetensors", {key.lower(): value for key, value in weights(d, f).items()})
    return repo, place, repo / place / "params.safetensors"


WRITERS: list[Callable[[Path, int, int], Where]] = [saelens, sparsify, dictionary_learning, gemma_scope, gemma_scope_2]
pytestmark = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def load(where: Where) -> Any:
    return AutoSAE.from_pretrained(where[0], subfolder=where[1])


def tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        return {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    return torch.load(path, weights_only=True)  # noqa: TID251


def put(path: Path, content: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    else:
        torch.save(content, path)


def test_whole_it_loads(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    assert load(where).config.d_sae == F
    assert identify(open_files(str(where[0]), where[1])).__name__.endswith(write.__name__)


def test_truncated_anywhere(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    whole = where[2].read_bytes()
    for share in range(20):
        where[2].write_bytes(whole[: len(whole) * share // 20])
        with pytest.raises((CheckpointError, ConfigError)):
            load(where)


def test_each_tensor_missing_misshapen_or_not_finite(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    whole = tensors(where[2])
    for name, value in whole.items():
        damaged = [
            {key: tensor for key, tensor in whole.items() if key != name},
            {**whole, name: value[..., :-1].clone()},
            {**whole, name: value.unsqueeze(0)},
            {**whole, name: torch.full_like(value, torch.nan)},
        ]
        for content in damaged:
            put(where[2], content)
            with pytest.raises((CheckpointError, ConfigError)):
                load(where)
    put(where[2], {**whole, "something_else": torch.ones(3)})
    with pytest.raises(CheckpointError, match="something_else"):
        load(where)


def test_square_matrices_keep_their_orientation(tmp_path: Path, write: Callable[..., Where]):
    if write in (gemma_scope, gemma_scope_2):  # their width stands in the name
        wide = write(tmp_path / "wide", 1024, 1024)
    else:
        wide = write(tmp_path / "wide", 16, 16)
    sae = load(wide)
    w = weights(sae.config.d_in, sae.config.d_sae)
    assert torch.equal(sae.W_enc, w["W_enc"])
    assert torch.equal(sae.W_dec, w["W_dec"])


def test_configs_that_are_none(tmp_path: Path, write: Callable[..., Where]):
    where = write(tmp_path, D, F)
    config = next((where[0] / where[1]).glob("*.json"), None)
    if config is None:
        config = where[0] / where[1] / "config.json"
    for text in (
        "",
        "[1]",
        "{",
        "null",
        '{"trainer": 3, "d_in": [], "architecture": {}, "metadata": 7}',
        "[" * 100_000,
    ):
        config.write_text(text)
        try:
            load(where)
        except (CheckpointError, ConfigError):
            continue
        assert write is gemma_scope, "its files have no config, so that one beside them says nothing"
