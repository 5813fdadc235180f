"""One checkpoint of each format, as small as its names allow: where it lies, how it is asked for, which file has the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

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


def llama_scope(root: Path, d: int, f: int) -> Where:
    place = "Llama3_1-8B-Base-L8R-8x"
    config = {"hook_point_in": "blocks.8.hook_resid_post", "d_model": d, "d_sae": f, "jump_relu_threshold": 0.2}
    _json(root / place / "hyperparams.json", config | {"dataset_average_activation_norm": {"in": 2.5, "out": 2.5}})
    save(root / place / "checkpoints/final.safetensors", _linear(d, f))
    return root, place, root / place / "checkpoints/final.safetensors"


def llama_scope_r1(root: Path, d: int, f: int) -> Where:
    place, hook = "400M-Slimpajama-400M-OpenR1-Math-220k/L5R", "blocks.5.hook_resid_post"
    _json(root / place / "config.json", {"hook_point_in": hook, "d_model": d, "d_sae": f})
    scalars = {f"dataset_average_activation_norm.{hook}": torch.tensor(2.5)}
    log = {"log_jumprelu_threshold": weights(d, f)["threshold"].log()}
    save(root / place / "sae_weights.safetensors", _linear(d, f) | log | scalars)
    return root, place, root / place / "sae_weights.safetensors"


def qwen_scope(root: Path, d: int, f: int) -> Where:
    repo = root / f"SAE-Res-Qwen3-1.7B-Base-W{f // 1024}K-L0_5"
    w = weights(d, f)
    tensors = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()}
    save_pt(repo / "layer3.sae.pt", tensors | {"b_enc": w["b_enc"], "b_dec": w["b_dec"]})
    return repo, "layer3.sae", repo / "layer3.sae.pt"


def goodfire(root: Path, d: int, f: int) -> Where:
    name = "Llama-3.1-8B-Instruct-SAE-l19"
    save_pt(root / f"{name}.pth", _linear(d, f, "_linear"))
    return root, name, root / f"{name}.pth"


def deepseek(root: Path, d: int, f: int) -> Where:
    name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19"
    save_pt(root / f"{name}.pt", _linear(d, f))
    return root, name, root / f"{name}.pt"


def openai(root: Path, d: int, f: int) -> Where:
    w, place = weights(d, f), "resid_post_mlp_v5_32k/autoencoders/8.pt"
    layers = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    save_pt(root / place, {"pre_bias": w["b_dec"], "latent_bias": w["b_enc"], **layers, "activation": "ReLU"})
    return root, place, root / place


def circuit_tracer(root: Path, d: int, f: int) -> Where:
    config = {"model_name": "Qwen/Qwen3-4B", "model_kind": "transcoder_set"}
    config |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    w = weights(d, f)
    threshold = {"activation_function.threshold": w.pop("threshold")}
    save(root / "layer_3.safetensors", {**w, "W_enc": w["W_enc"].T, **threshold})
    return root, "layer_3", root / "layer_3.safetensors"


def pchlenski(root: Path, d: int, f: int) -> Where:
    name = f"final_sparse_autoencoder_gpt2-small_blocks.1.ln2.hook_normalized_{f}.pt"
    w = weights(d, f)
    w.pop("threshold")
    save_pt(root / name, {"cfg": {"is_transcoder": True}, "state_dict": w | {"b_dec_out": w["b_dec"] + 1}})
    return root, name, root / name


def hook_z(root: Path, d: int, f: int) -> Where:
    w, name = weights(d, f), "gpt2-small_L1_Hcat_z_v9"
    w.pop("threshold")
    save_pt(root / f"{name}.pt", w)
    _json(
        root / f"{name}_cfg.json",
        {"act_name": "blocks.1.attn.hook_z", "act_size": d, "dict_size": f, "model_name": "gpt2-small"},
    )
    return root, name, root / f"{name}.pt"


def _linear(d: int, f: int, suffix: str = "") -> dict[str, torch.Tensor]:
    w = weights(d, f)
    layers = {
        f"encoder{suffix}.weight": w["W_enc"].T.contiguous(),
        f"decoder{suffix}.weight": w["W_dec"].T.contiguous(),
    }
    return {**layers, f"encoder{suffix}.bias": w["b_enc"], f"decoder{suffix}.bias": w["b_dec"]}


_CONFIGURED = (
    saelens,
    sparsify,
    dictionary_learning,
    gemma_scope_2,
    llama_scope,
    llama_scope_r1,
    circuit_tracer,
    hook_z,
)
_NAMED = (gemma_scope, qwen_scope, goodfire, deepseek, openai, pchlenski)
# under the names of their modules
WRITERS: dict[str, Callable[[Path, int, int], Where]] = {write.__name__: write for write in (*_CONFIGURED, *_NAMED)}
