"""What is written in SAELens' layout, read back by its formulas and by ourselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_sae import AutoSAE, JumpReLUConfig, JumpReLUSAE, StandardConfig, StandardSAE, TopKConfig, TopKSAE
from hf_sae.conversion import saelens
from hf_sae.errors import ConversionError
from tests.conversion.layouts import close, inputs, jump, top


D, F, K = 12, 48, 6
X = inputs(D)
KINDS = {
    "standard": (StandardConfig, StandardSAE, {}),
    "topk": (TopKConfig, TopKSAE, {"k": K}),
    "jumprelu": (JumpReLUConfig, JumpReLUSAE, {}),
}


def model(kind: str = "standard", **fields: Any) -> Any:
    config, build, own = KINDS[kind]
    fields = {"hook_in": "resid_post.4", "base_model": "openai-community/gpt2"} | own | fields
    sae = build(config(d_in=D, d_sae=F, **fields))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) / 2)
            if name == "threshold":
                parameter.abs_()
    return sae.eval()


def transcoder(kind: str = "standard", **fields: Any) -> Any:
    return model(kind, **({"hook_in": "mlp_in.4", "hook_out": "mlp_out.4", "d_out": 10} | fields))


def written(sae: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    saelens.write(sae, folder)
    return json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")


def theirs(cfg: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and output by SAELens' formulas, on what it would hand over."""
    raw, mean, scale = x, torch.zeros(()), torch.ones(())
    if cfg["normalize_activations"] == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        scale = (x - mean).std(-1, keepdim=True)
        x = (x - mean) / (scale + 1e-5)
    elif cfg["normalize_activations"] == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / D**0.5
        x = x / scale
    pre = (x - w["b_dec"] if cfg["apply_b_dec_to_input"] else x) @ w["W_enc"] + w["b_enc"]
    kind = cfg["architecture"]
    z = top(pre, cfg["k"]) if kind == "topk" else jump(pre, w["threshold"]) if "jump" in kind else torch.relu(pre)
    out = z @ w["W_dec"] + w["b_dec"]
    if "transcoder" not in kind:
        out = out * scale + mean
    return z, out + (raw @ w["W_skip"].T if "skip" in kind else 0)


@torch.no_grad()
def same(sae: Any, folder: Path, x: Tensor = X) -> dict[str, Any]:
    """Equal by the formulas, and again when it is read back."""
    cfg, w = written(sae, folder)
    z, out = theirs(cfg, w, x)
    assert 0 < (z != 0).float().mean() < 1
    close(z, sae.encode(X))
    close(out, sae(X).reconstruction)
    back = AutoSAE.from_pretrained(folder)
    close(back.encode(X), sae.encode(X))
    close(back(X).reconstruction, sae(X).reconstruction)
    assert (back.config.hook_in, back.config.hook_out) == (sae.config.hook_in, sae.config.hook_out)
    assert back.config.base_model == sae.config.base_model
    return cfg


NORMS = [
    {},
    {"input_norm": "scalar", "input_scale": 0.37},
    {"input_norm": "layer_norm"},
    {"input_norm": "unit_rms", "norm_eps": 0.0},
]


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_saes(tmp_path: Path, kind: str, norm: dict[str, Any], pre_bias: bool):
    cfg = same(model(kind, pre_bias=pre_bias, **norm), tmp_path)
    assert (cfg["architecture"], cfg["apply_b_dec_to_input"]) == (kind, pre_bias)
    assert cfg["metadata"]["hook_name"] == "blocks.4.hook_resid_post"
    assert cfg["metadata"]["model_name"] == "gpt2"
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_transcoders(tmp_path: Path, kind: str, norm: dict[str, Any], skip: bool):
    sae = transcoder(kind, skip=skip, **norm)
    if skip and norm.get("input_norm") in ("layer_norm", "unit_rms"):
        with pytest.raises(ConversionError, match="and a skip"):
            saelens.write(sae, tmp_path)
        assert list(tmp_path.iterdir()) == []
        return
    cfg = same(sae, tmp_path)
    name = ("" if kind == "standard" else "jumprelu_") + ("skip_" if skip else "") + "transcoder"
    assert (cfg["architecture"], cfg["d_out"]) == (name, 10)
    assert cfg["metadata"]["hook_name_out"] == "blocks.4.hook_mlp_out"


def test_a_norm_without_gain_is_a_hook_of_its_own(tmp_path: Path):
    sae = transcoder(hook_in="resid_mid.4", input_norm="unit_ln", skip=True)
    x = X - X.mean(-1, keepdim=True)
    cfg = same(sae, tmp_path, x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    assert cfg["metadata"]["hook_name"] == "blocks.4.ln2.hook_normalized"
    assert cfg["normalize_activations"] == "none"


def test_centred_inputs_of_a_transcoder_are_folded(tmp_path: Path):
    sae = transcoder(hook_in="resid_mid.4", input_norm="center", skip=True, base_model="google/gemma-2-2b")
    assert same(sae, tmp_path)["metadata"].get("model_from_pretrained_kwargs") is None


def test_centred_models_ask_for_a_centred_host(tmp_path: Path):
    sae = model(input_norm="center")
    mean = X.mean(-1, keepdim=True)
    cfg, w = written(sae, tmp_path / "a")
    z, out = theirs(cfg, w, X - mean)
    with torch.no_grad():
        close(z, sae.encode(X))
        close(out + mean, sae(X).reconstruction)
        close(AutoSAE.from_pretrained(tmp_path / "a")(X).reconstruction, sae(X).reconstruction)
    asked = {"center_writing_weights": True}
    assert cfg["metadata"]["model_from_pretrained_kwargs"] == asked
    cfg = same(transcoder(center_target=True, input_norm="layer_norm"), tmp_path / "b")
    assert cfg["metadata"]["model_from_pretrained_kwargs"] == asked
    assert AutoSAE.from_pretrained(tmp_path / "b").config.center_target


@pytest.mark.parametrize(
    ("sae", "reason"),
    [
        (lambda: transcoder("topk"), "no TopK transcoder"),
        (lambda: model(input_norm="unit_ln"), "unit_ln"),
        (lambda: model(input_norm="layer_norm", norm_eps=1e-6), "norm_eps=1e-06"),
        (lambda: model(input_norm="center", base_model="google/gemma-2b"), "LayerNorm"),
        (lambda: transcoder(center_target=True, base_model=None), "LayerNorm"),
        (lambda: model(hook_in="vision:resid_post.4"), "vision"),
        (lambda: model(hook_in="attn_in.4"), "no hook"),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, sae: Any, reason: str):
    with pytest.raises(ConversionError, match=reason):
        saelens.write(sae(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_module_paths(tmp_path: Path):
    cfg = same(model(hook_in="model.layers.3.mlp.down_proj"), tmp_path / "a")
    assert cfg["metadata"]["hook_name"] == "model.layers.3.mlp.down_proj"
    assert cfg["metadata"]["model_class_name"] == "AutoModelForCausalLM"
    cfg = same(model(hook_in="model.layers.3.mlp.down_proj:input"), tmp_path / "b")
    assert "hook_name" not in cfg["metadata"]


def test_thresholds_stay_in_float32(tmp_path: Path):
    cfg, w = written(model("jumprelu").to(torch.bfloat16), tmp_path)
    assert (cfg["dtype"], w["W_enc"].dtype, w["threshold"].dtype) == ("bfloat16", torch.bfloat16, torch.float32)


def test_data_comes_back(tmp_path: Path):
    data = {"dataset": "org/text", "context_length": 256, "prepend_bos": False}
    sae = model(provenance={"data": data})
    cfg = same(sae, tmp_path)
    assert cfg["metadata"]["dataset_path"] == "org/text"
    assert AutoSAE.from_pretrained(tmp_path).config.provenance["data"] == data
