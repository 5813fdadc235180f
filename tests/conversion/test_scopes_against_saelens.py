"""The same files through SAELens' loaders: what agrees, and where they differ and why. Needs sae_lens (`pip install sae-lens`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from hf_sae import AutoSAE
from tests.conversion import test_goodfire as goodfire
from tests.conversion import test_llama_scope as llama
from tests.conversion import test_llama_scope_r1 as llama_r1
from tests.conversion import test_qwen_scope as qwen
from tests.conversion.layouts import close, inputs, rms, save, save_pt, weights


saelens = pytest.importorskip("sae_lens")
loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
D, F = 12, 1024


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """`load(repo, place, loader, **config)`: SAELens' public loading of a repo that is a folder under `tmp_path`."""

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        path = tmp_path / repo_id / (subfolder or "") / filename
        if not path.exists():
            raise loaders.EntryNotFoundError(filename)
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(tmp_path / repo_id / filename, "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)

    def load(repo: str, place: str, loader: str, **config: Any) -> Any:
        def convert(cfg_overrides: dict[str, Any], **kwargs: Any) -> Any:
            return getattr(loaders, loader)(cfg_overrides={**cfg_overrides, **config}, **kwargs)

        return saelens.SAE.from_pretrained(repo, place, converter=convert)

    return load


def agree(ours: Any, other: Any, x: torch.Tensor, read: torch.Tensor | None = None) -> None:
    """Latents and outputs for activations `x`, which the peer sees as `read`."""
    read = x if read is None else read
    with torch.no_grad():
        close(ours.encode(x), other.encode(read))
        close(ours(x).reconstruction, other(read))


def write_npz(folder: Path, w: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in w.items()})


@pytest.mark.parametrize("place", ["res", "mlp"])
def test_gemma_scope(tmp_path, theirs, place):
    repo, folder = f"google/gemma-scope-2b-pt-{place}", "layer_3/width_1k/average_l0_7"
    write_npz(tmp_path / repo / folder, weights(D, F))
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder=folder)
    agree(ours, theirs(repo, folder, "gemma_2_sae_huggingface_loader", d_in=D, d_sae=F), inputs(D))


def test_gemma_scope_transcoders(tmp_path, theirs):
    repo, folder = "google/gemma-scope-2b-pt-transcoders", "layer_3/width_1k/average_l0_7"
    write_npz(tmp_path / repo / folder, weights(D, F))
    ours, x = AutoSAE.from_pretrained(tmp_path / repo, subfolder=folder), inputs(D)
    other = theirs(repo, folder, "gemma_2_transcoder_huggingface_loader", d_in=D, d_out=D, d_sae=F)
    agree(ours, other, x, rms(x, 1e-6))  # their hook is behind the norm


def test_gemma_scope_embeddings_differ_by_the_scale_of_the_bias(tmp_path, theirs):
    repo, folder = "google/gemma-scope-2b-pt-res", "embedding/width_1k/average_l0_7"
    w, x = weights(D, F), inputs(D)
    write_npz(tmp_path / repo / folder, w)
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder=folder)
    other = theirs(repo, folder, "gemma_2_sae_huggingface_loader", d_in=D, d_sae=F)
    with torch.no_grad():
        close(ours.encode(x), other.encode(x))
        close(ours(x).reconstruction, other(x) + (D**0.5 - 1) * w["b_dec"])


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out", "transcoder", "transcoder_affine"])
def test_gemma_scope_2(tmp_path, theirs, kind, with_config):
    kind, _, affine = kind.partition("_aff")
    repo, folder = "google/gemma-scope-2-1b-pt", f"{kind}/layer_13_width_1k_l0_big" + "_affine" * bool(affine)
    w = {name.lower(): tensor for name, tensor in weights(D, F).items()}
    if affine:
        w["affine_skip_connection"] = torch.randn(D, D, generator=torch.Generator().manual_seed(5))
    save(tmp_path / repo / folder / "params.safetensors", w)
    if with_config:
        said = loaders._infer_gemma_3_raw_cfg_dict(repo, folder)
        (tmp_path / repo / folder / "config.json").write_text(json.dumps(said))
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder=folder)
    other = theirs(repo, folder, "gemma_3_sae_huggingface_loader")
    agree(ours, other, inputs(D))
    assert ours.config.base_model == other.cfg.metadata.model_name


@pytest.mark.parametrize("unit", [True, False])
def test_llama_scope_agrees_where_the_decoders_rows_are_unit_vectors(tmp_path, theirs, unit):
    d, f = llama.D, llama.F
    repo, place, t, x = "fnlp/Llama3_1-8B-Base-LXR-8x", llama.PLACE, llama.tensors(), inputs(d)
    if unit:
        t["decoder.weight"] = torch.nn.functional.normalize(t["decoder.weight"], dim=0)
    llama.write(tmp_path / repo, t, llama.hyperparams())
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder=place)
    other = theirs(repo, place, "llama_scope_sae_huggingface_loader", d_in=d, d_sae=f)
    other.fold_activation_norm_scaling_factor(d**0.5 / 2.5)  # what their registry says of each layer
    if unit:
        agree(ours, other, x)
    else:
        assert ((ours.encode(x) > 0) != (other.encode(x) > 0)).any()


def test_llama_scope_r1(tmp_path, theirs):
    d, f = llama_r1.D, llama_r1.F
    repo, place = "fnlp/Llama-Scope-R1-Distill", llama_r1.PLACE
    llama_r1.write(tmp_path / repo, llama_r1.tensors(), llama_r1.config())
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder=place)
    other = theirs(repo, place, "llama_scope_r1_distill_sae_huggingface_loader", d_in=d, d_sae=f)
    other.fold_activation_norm_scaling_factor(d**0.5 / 2.5)
    agree(ours, other, inputs(d))


def test_qwen_scope(tmp_path, theirs):
    repo = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W1K-L0_{qwen.K}"
    qwen.write(tmp_path / repo, qwen.tensors())
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder="layer3.sae.pt")
    other = theirs(repo, "layer3.sae.pt", "qwen_scope_sae_huggingface_loader", d_in=qwen.D)
    agree(ours, other, inputs(qwen.D))


@pytest.mark.parametrize(
    ("repo", "file", "prefix", "loader"),
    [
        (
            "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
            "Llama-3.1-8B-Instruct-SAE-l19.pth",
            "_linear",
            "get_goodfire_huggingface_loader",
        ),
        (
            "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
            "",
            "deepseek_r1_sae_huggingface_loader",
        ),
    ],
)
def test_single_files(tmp_path, theirs, repo, file, prefix, loader):
    save_pt(tmp_path / repo / file, goodfire.tensors(prefix))
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder=file)
    agree(ours, theirs(repo, file, loader, d_in=goodfire.D, d_sae=goodfire.F), inputs(goodfire.D))
    assert ours.config.hook_in == "resid_post.19"


@pytest.mark.parametrize("training", ["wandb-config.yaml", "wanb-config.yaml"])
@pytest.mark.parametrize("with_config", [True, False])
def test_transcoder_sets(tmp_path, theirs, training, with_config):
    repo, w = "mwhanna/qwen3-14b-transcoders", weights(D, 30)
    content = {name: w[name] for name in ("W_dec", "b_enc", "b_dec")} | {"W_enc": w["W_enc"].T}
    save(tmp_path / repo / "layer_2.safetensors", content)
    sizes = {"d_model": {"value": D}, "d_feature": {"value": 30}, "batch_size": {"value": 64}}
    (tmp_path / repo / training).write_text(yaml.safe_dump(sizes))
    if with_config:
        hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
        config = {"model_name": "Qwen/Qwen3-14B", "model_kind": "transcoder_set", **hooks}
        (tmp_path / repo / "config.yaml").write_text(yaml.safe_dump(config))
    ours = AutoSAE.from_pretrained(tmp_path / repo, subfolder="layer_2")
    other = theirs(repo, "layer_2.safetensors", "mwhanna_transcoder_huggingface_loader")
    agree(ours, other, inputs(D))
    assert ours.config.base_model == other.cfg.metadata.model_name


LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
CLASSES = {
    "AutoEncoder": {"bias": "b_dec", **LINEAR},
    "AutoEncoderTopK": {"b_dec": "b_dec", **LINEAR},
    "BatchTopKSAE": {"b_dec": "b_dec", **LINEAR},
    "MatryoshkaBatchTopKSAE": {key: key for key in ("W_enc", "b_enc", "W_dec", "b_dec")},
    "JumpReluAutoEncoder": {key: key for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")},
}


@pytest.mark.parametrize("place", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning_whose_place_saelens_does_not_read(tmp_path, theirs, name, place):
    w = weights(D, F)
    stored = {key: (w[own].T if ".weight" in key else w[own]).contiguous() for key, own in CLASSES[name].items()}
    stored |= {"threshold": torch.tensor(0.4)} if "BatchTopK" in name else {}
    stored |= {"k": torch.tensor(7)} if "TopK" in name else {}
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": F,
        "k": 7,
        "layer": 3,
        "lm_name": "openai-community/gpt2",
    }
    config = {"trainer": {**trainer, "submodule_name": f"{place}_layer_3"}, "buffer": {"ctx_len": 128}}
    save_pt(tmp_path / "some/repo/trainer_0/ae.pt", stored)
    (tmp_path / "some/repo/trainer_0/config.json").write_text(json.dumps(config))
    ours = AutoSAE.from_pretrained(tmp_path / "some/repo", subfolder="trainer_0")
    other = theirs("some/repo", "trainer_0", "dictionary_learning_sae_huggingface_loader_1")
    agree(ours, other, inputs(D))
    assert ours.config.hook_in == f"{place}.3"
    assert other.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
