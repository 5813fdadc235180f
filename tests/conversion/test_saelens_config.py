"""What SAELens' `cfg.json` of any version says of places, hosts and activation functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sae import AutoSAE
from hf_sae.errors import ConversionError
from tests.conversion.layouts import check, top, weights
from tests.conversion.test_saelens import CENTRED, TO_MLP, D, F, K, X, encode, five, normed, plain, put, six


def test_version_five(tmp_path: Path):
    w = plain()
    options = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm"}
    sae = AutoSAE.from_pretrained(put(tmp_path, five(**options, sae_lens_training_version="5.1.0"), w))
    x, mean, std = normed("layer_norm")
    z = top((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    check(sae, X, z, (z @ w["W_dec"] + w["b_dec"]) * std + mean)
    assert (sae.config.hook_in, sae.config.k) == ("resid_pre.4", K)
    assert sae.config.provenance["data"] == {"context_length": 64}


@pytest.mark.parametrize("norm", [False, None, "none"])
def test_before_version_three_everything_is_a_default(tmp_path: Path, norm: Any):
    w = plain()
    sae = AutoSAE.from_pretrained(put(tmp_path, five(normalize_activations=norm), w))
    z = encode("", w, X - w["b_dec"])
    check(sae, X, z, z @ w["W_dec"] + w["b_dec"])


def test_true_was_the_average_scale(tmp_path: Path):
    put(tmp_path, five(normalize_activations=True), plain())
    with pytest.raises(ConversionError, match="input_scale"):
        AutoSAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("meta", "point"),
    [
        ({"hook_name": "blocks.4.attn.hook_z"}, "attn_z.4"),
        ({"hook_name": "model.layers.3", "model_class_name": "AutoModelForCausalLM"}, "resid_post.3"),
        ({"hook_name": "model.layers.3.mlp.down_proj"}, "model.layers.3.mlp.down_proj"),
        ({"hf_hook_name": "model.layers.3.self_attn.o_proj.input", "hook_name": "blocks.9.hook_attn_out"}, "attn_z.3"),
    ],
)
def test_places(tmp_path: Path, meta: dict[str, str], point: str):
    assert AutoSAE.from_pretrained(put(tmp_path, six("standard", meta), plain())).config.hook_in == point


def test_a_gain_that_was_folded_away(tmp_path: Path):
    hooks = {"hook_name": "blocks.4.mlp.hook_in", "hook_name_out": "blocks.4.hook_mlp_out"}
    meta = hooks | {"model_from_pretrained_kwargs": {"fold_ln": True, "revision": "step3000"}}
    config = AutoSAE.from_pretrained(put(tmp_path, six("transcoder", meta), plain())).config
    assert (config.hook_in, config.input_norm, config.base_revision) == ("resid_mid.4", "unit_ln", "step3000")


def test_what_is_known_besides_the_weights(tmp_path: Path):
    meta = {"dataset_path": "org/text", "context_size": 256, "prepend_bos": False, "l0": 61.5}
    config = AutoSAE.from_pretrained(put(tmp_path, six("jumprelu", meta), weights(D, F))).config
    assert config.provenance["data"] == {"dataset": "org/text", "context_length": 256, "prepend_bos": False}
    assert config.provenance["conversion"]["published"] == {"l0": 61.5}
    assert config.provenance["conversion"]["format"] == "saelens"


def test_points_by_hand(tmp_path: Path):
    put(tmp_path, six("standard", CENTRED | {"hook_name": "blocks.4.attn.hook_q"}), plain())
    with pytest.raises(ConversionError, match="hook_q"):
        AutoSAE.from_pretrained(tmp_path)
    sae = AutoSAE.from_pretrained(tmp_path, hook_in="resid_mid.4")
    assert (sae.config.hook_in, sae.config.input_norm) == ("resid_mid.4", "center")


Z = {"hook_name": "blocks.4.attn.hook_z", "model_from_pretrained_kwargs": {"fold_value_biases": True}}
REFUSED = {
    "abstopk": (six("abstopk"), "abstopk"),
    "temporal": (six("temporal"), "temporal"),
    "head": (six("standard", {"hook_head_index": 3}), "hook_head_index=3"),
    "hook": (six("standard", {"hook_name": "blocks.4.attn.hook_pattern"}), "hook_pattern"),
    "no hook": (six("standard", {"hook_name": None}), "hook_in="),
    "pre-gain": (six("standard", {"hook_name": "blocks.4.ln2.hook_normalized"}), "before its gain"),
    "heads": (six("standard", Z), "fold_value_biases"),
    "norm": (six("standard", normalize_activations="l2"), "'l2'"),
    "k": (six("topk"), "k=None"),
    "d_sae": (six("standard", d_sae=F + 1), "d_sae=49"),
    "d_out": (six("transcoder", TO_MLP, d_out=D + 1), "d_out=13"),
    "bias": (six("transcoder", TO_MLP, apply_b_dec_to_input=True), "output's space"),
    "scale": (six("transcoder", TO_MLP, normalize_activations="expected_average_only_in"), "divided by"),
    "extra": (six("standard"), "threshold"),
    "missing": (six("jumprelu"), "threshold"),
    "activation": (five(activation_fn_str="tanh-relu"), "tanh-relu"),
    "topk without k": (five(activation_fn_str="topk"), "activation_fn='topk'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(tmp_path: Path, case: str):
    cfg, reason = REFUSED[case]
    put(tmp_path, cfg, weights(D, F) if case == "extra" else plain())
    with pytest.raises(ConversionError, match=reason):
        AutoSAE.from_pretrained(tmp_path)


def test_gpt2_of_openai_in_an_old_layout_is_a_topk_of_32(tmp_path: Path):
    """The golden config of `gpt2-small-…-v5-32k`, which older versions of its own library read as a ReLU."""
    options = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 32}, "normalize_activations": "layer_norm"}
    put(tmp_path, five(**options, context_size=64, prepend_bos=False), plain())
    config = AutoSAE.from_pretrained(tmp_path).config
    assert (config.model_type, config.k, config.input_norm, config.norm_eps) == ("hf_sae_topk", 32, "layer_norm", 1e-5)
    assert config.provenance["data"] == {"context_length": 64, "prepend_bos": False}
