"""SAELens' layout, of version 6 and before, against its formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE, AutoTranscoder
from hf_sae.errors import ConversionError
from tests.conversion.layouts import check, inputs, jump, save, top, transforms, weights


D, F, K = 12, 48, 6
X = inputs(D)
TO_MLP = {"hook_name": "blocks.4.hook_resid_mid", "hook_name_out": "blocks.4.hook_mlp_out"}
SIX = {"sae_lens_version": "6.5.0", "model_name": "gpt2-small", "hook_name": "blocks.4.hook_resid_pre"}


def put(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor], **beside: Any) -> Path:
    save(folder / "sae_weights.safetensors", tensors)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def six(architecture: str, meta: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    cfg = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": "transcoder" not in architecture, "normalize_activations": "none"}
    return cfg | {"reshape_activations": "none", "metadata": SIX | (meta or {})} | options


def five(**options: Any) -> dict[str, Any]:
    cfg = {"model_name": "gpt2-small", "hook_point": "blocks.4.hook_resid_pre", "hook_point_head_index": None}
    return cfg | {"d_in": D, "d_sae": F, "dtype": "torch.float32", "context_size": 64} | options


def plain(d_out: int | None = None) -> dict[str, Tensor]:
    w = weights(D, F, d_out)
    w.pop("threshold")
    return w


def gated() -> dict[str, Tensor]:
    w = plain()
    b_gate = w.pop("b_enc")
    g = torch.Generator().manual_seed(7)
    return w | {"b_gate": b_gate, "b_mag": torch.randn(F, generator=g) / 4, "r_mag": torch.randn(F, generator=g) / 3}


def encode(architecture: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """SAELens' formulas."""
    if architecture == "gated":
        magnitude = torch.relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
        return (x @ w["W_enc"] + w["b_gate"] > 0) * magnitude
    pre = x @ w["W_enc"] + w["b_enc"]
    if architecture == "topk":
        return top(pre, K)
    return jump(pre, w["threshold"]) if "threshold" in w else torch.relu(pre)


TENSORS = {
    "standard": (plain, {}),
    "topk": (plain, {"k": K}),
    "gated": (gated, {}),
    "jumprelu": (lambda: weights(D, F), {}),
}


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", TENSORS)
def test_architectures(tmp_path: Path, architecture: str, pre_bias: bool):
    tensors, options = TENSORS[architecture]
    w = tensors()
    sae = AutoSAE.from_pretrained(
        put(tmp_path, six(architecture, apply_b_dec_to_input=pre_bias, **options), w),
    )
    z = encode(architecture, w, X - pre_bias * w["b_dec"])
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"])
    config = sae.config
    assert (config.hook_in, config.hook_out, config.base_model) == ("resid_pre.4", None, "openai-community/gpt2")
    assert config.subtracts_bias is pre_bias
    assert config.input_norm == "none"
    said = "gate and magnitude of each latent merged into a threshold"
    assert (said in transforms(sae)) == (architecture == "gated")


def test_topk_latents_in_units_of_the_decoder(tmp_path: Path):
    w = plain()
    sae = AutoSAE.from_pretrained(put(tmp_path, six("topk", k=K, rescale_acts_by_decoder_norm=True), w))
    norms = w["W_dec"].norm(dim=-1)
    z = top(((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms, K)
    check(sae, X, z, (z / norms) @ w["W_dec"] + w["b_dec"])
    assert transforms(sae) == ["norms of the decoder's rows moved into the encoder"]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["", "jumprelu_"])
def test_transcoders(tmp_path: Path, kind: str, skip: bool):
    d_out = 10
    w = weights(D, F, d_out) if kind else plain(d_out)
    if skip:
        w["W_skip"] = torch.randn(d_out, D, generator=torch.Generator().manual_seed(3))
    hooks = {"hook_name": "blocks.4.mlp.hook_in", "hook_name_out": "blocks.4.hook_mlp_out"}
    cfg = six(f"{kind}{'skip_' if skip else ''}transcoder", hooks, d_out=d_out)
    sae = AutoTranscoder.from_pretrained(put(tmp_path, cfg, w))
    z = encode("", w, X)
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0))
    assert (sae.config.hook_in, sae.config.hook_out) == ("mlp_in.4", "mlp_out.4")


def test_batchtopk_of_training_is_the_jumprelu_that_it_would_be_saved_as(tmp_path: Path):
    w = plain() | {"topk_threshold": torch.tensor(0.8, dtype=torch.float64)}
    cfg = six("batchtopk", k=4.5, rescale_acts_by_decoder_norm=True)
    sae = AutoSAE.from_pretrained(put(tmp_path / "a", cfg, w))
    norms = w["W_dec"].norm(dim=-1)
    z = jump(((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms, 0.8)
    check(sae, X, z, (z / norms) @ w["W_dec"] + w["b_dec"])
    cfg["rescale_acts_by_decoder_norm"] = False
    sae = AutoSAE.from_pretrained(put(tmp_path / "b", cfg, w))
    z = jump((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0.8)
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"])
    w["topk_threshold"].zero_()
    with pytest.raises(ConversionError, match="never estimated"):
        AutoSAE.from_pretrained(put(tmp_path / "c", cfg, w))


def test_older_training_checkpoints_hold_the_logarithm_of_the_threshold(tmp_path: Path):
    w = weights(D, F)
    stored = {**{k: v for k, v in w.items() if k != "threshold"}, "log_threshold": w["threshold"].log()}
    sae = AutoSAE.from_pretrained(put(tmp_path, six("jumprelu"), stored))
    z = encode("jumprelu", w, X - w["b_dec"])
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"])


def normed(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input, mean and scale as in SAELens' two per-token norms."""
    if kind == "layer_norm":
        mean = X.mean(-1, keepdim=True)
        std = (X - mean).std(-1, keepdim=True)
        return (X - mean) / (std + 1e-5), mean, std
    coefficient = D**0.5 / X.norm(dim=-1, keepdim=True)
    return X * coefficient, torch.zeros(()), 1 / coefficient


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_norms_of_each_token(tmp_path: Path, kind: str):
    w = plain()
    sae = AutoSAE.from_pretrained(put(tmp_path, six("topk", k=K, normalize_activations=kind), w))
    x, mean, scale = normed(kind)
    z = top((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    check(sae, X, z, (z @ w["W_dec"] + w["b_dec"]) * scale + mean)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_a_transcoders_output_is_never_undone(tmp_path: Path, kind: str):
    w = plain()
    hooks = {"hook_name": "blocks.4.hook_mlp_in", "hook_name_out": "blocks.4.hook_mlp_out"}
    sae = AutoSAE.from_pretrained(put(tmp_path, six("transcoder", hooks, normalize_activations=kind), w))
    z = encode("", w, normed(kind)[0])
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("source", ["beside", "given", "both"])
def test_the_average_scale(tmp_path: Path, source: str):
    w, s = plain(), 0.31
    beside = {} if source == "given" else {"activation_scaler": {"scaling_factor": s if source == "beside" else 9.0}}
    given = {} if source == "beside" else BY_HAND
    put(tmp_path, six("standard", normalize_activations="expected_average_only_in"), w, **beside)
    sae = AutoSAE.from_pretrained(tmp_path, **given)
    z = encode("", w, s * X - w["b_dec"])
    check(sae, X, z, (z @ w["W_dec"] + w["b_dec"]) / s)
    assert (sae.config.input_norm, sae.config.input_scale) == ("scalar", s)


def test_an_unknown_average_scale_says_how_to_give_it(tmp_path: Path):
    put(tmp_path, six("standard", normalize_activations="expected_average_only_in"), plain())
    with pytest.raises(ConversionError, match='input_norm="scalar", input_scale='):
        AutoSAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("pre_bias", [True, False])
def test_whitening(tmp_path: Path, pre_bias: bool):
    w, g = gated(), torch.Generator().manual_seed(5)
    m = torch.eye(D, dtype=torch.float64) + torch.randn(D, D, generator=g, dtype=torch.float64) / 6
    mean, undo = torch.randn(D, generator=g, dtype=torch.float64), torch.linalg.inv(m)
    cfg = six("gated", normalize_activations="covariance_whitening", apply_b_dec_to_input=pre_bias)
    put(tmp_path, cfg, w)
    with pytest.raises(ConversionError, match=r"activation_whitening\.safetensors"):
        AutoSAE.from_pretrained(tmp_path)
    stored = {"mean": mean, "matrix": m, "inverse_matrix": undo}
    save(tmp_path / "activation_whitening.safetensors", stored)
    sae = AutoSAE.from_pretrained(tmp_path)
    z = encode("gated", w, ((X.double() - mean) @ m).float() - pre_bias * w["b_dec"])
    check(sae, X, z, ((z @ w["W_dec"] + w["b_dec"]).double() @ undo + mean).float())
    save(tmp_path / "activation_whitening.safetensors", stored | {"matrix": m[:4]})
    with pytest.raises(ConversionError, match=r"matrices of \[4, 12\]"):
        AutoSAE.from_pretrained(tmp_path)


BY_HAND = {"input_norm": "scalar", "input_scale": 0.31}
CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


@pytest.mark.parametrize("kind", ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"])
def test_a_processed_host_is_centred(tmp_path: Path, kind: str):
    w, mean = plain(), X.mean(-1, keepdim=True)
    put(tmp_path, six("standard", CENTRED, normalize_activations=kind), w)
    sae = AutoSAE.from_pretrained(tmp_path, **(BY_HAND if kind == "expected_average_only_in" else {}))
    x, scale = X - mean, torch.tensor(0.31 if kind == "expected_average_only_in" else 1.0)
    if kind == "constant_norm_rescale":
        scale = D**0.5 / x.norm(dim=-1, keepdim=True)
    if kind == "layer_norm":
        scale = 1 / x.std(-1, keepdim=True)
    z = encode("", w, x * scale - w["b_dec"])
    out = (z @ w["W_dec"] + w["b_dec"]) / scale + mean
    with torch.no_grad():  # SAELens' eps of 1e-5 in layer_norm's divisor is more than a rounding
        torch.testing.assert_close(sae.encode(X), z, rtol=0, atol=1e-4 if kind == "layer_norm" else 5e-6)
        torch.testing.assert_close(sae(X).reconstruction, out, rtol=0, atol=1e-4 if kind == "layer_norm" else 1e-5)
    if kind == "expected_average_only_in":  # it is in the weights: nothing is left to be scaled
        assert (sae.config.input_norm, sae.config.input_scale) == ("center", 1.0)


def test_a_processed_hosts_transcoder_predicts_a_centred_target(tmp_path: Path):
    w = plain() | {"W_skip": torch.randn(D, D, generator=torch.Generator().manual_seed(3))}
    hooks = {"hook_name": "blocks.4.hook_resid_mid", "hook_name_out": "blocks.4.hook_mlp_out"}
    sae = AutoSAE.from_pretrained(put(tmp_path, six("skip_transcoder", hooks | CENTRED), w))
    x = X - X.mean(-1, keepdim=True)
    z = encode("", w, x)
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T)
    assert sae.config.center_target


def test_hosts_without_layer_norm_are_never_centred(tmp_path: Path):
    put(tmp_path, six("standard", CENTRED | {"model_name": "gemma-2b"}), plain())
    sae = AutoSAE.from_pretrained(tmp_path)
    assert (sae.config.input_norm, sae.config.base_model) == ("none", "google/gemma-2b")
    assert "LayerNorm hosts alone" in transforms(sae)[0]


def test_finetuned_scales(tmp_path: Path):
    w = plain()
    factor = torch.linspace(0.5, 2, F)
    cfg = five(finetuning_scaling_factor=True)
    z = encode("", w, X - w["b_dec"])
    for stored, used in ((torch.ones(F), torch.ones(F)), (factor, factor)):
        sae = AutoSAE.from_pretrained(put(tmp_path, cfg, w | {"scaling_factor": stored}))
        check(sae, X, z, (z * used) @ w["W_dec"] + w["b_dec"])
    put(tmp_path, five(), w | {"scaling_factor": factor})
    with pytest.raises(ConversionError, match="finetuning_scaling_factor"):
        AutoSAE.from_pretrained(tmp_path)


def test_a_skip_of_the_raw_input_beside_a_norm_is_refused(tmp_path: Path):
    w = plain() | {"W_skip": torch.eye(D)}
    put(tmp_path, six("skip_transcoder", TO_MLP, normalize_activations="layer_norm"), w)
    with pytest.raises(ConversionError, match="raw input"):
        AutoSAE.from_pretrained(tmp_path)


def test_widths_that_no_sae_has(tmp_path: Path):
    put(tmp_path, six("standard"), plain(10))
    with pytest.raises(ConversionError, match="writes 10"):
        AutoSAE.from_pretrained(tmp_path)
