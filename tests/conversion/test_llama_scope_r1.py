"""The later layout of Llama Scope: thresholds as logarithms, mean norms beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, inputs, save, transforms, weights


D, F = 16, 48
HOOK = "blocks.5.hook_resid_post"
PLACE = "800M-Slimpajama-0-OpenR1-Math-220k/L5R"


def config(**changes: Any) -> dict[str, Any]:
    return {
        "sae_type": "sae",
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "d_model": D,
        "expansion_factor": F // D,
        "use_decoder_bias": True,
        "use_glu_encoder": False,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.0,
        "apply_decoder_bias_to_pre_encoder": False,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": False,
        "top_k": 50,
    } | changes


def tensors(**changes: Any) -> dict[str, Tensor]:
    w = weights(D, F)
    content = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "decoder.bias": w["b_dec"],
        "log_jumprelu_threshold": w["threshold"].log(),
        f"dataset_average_activation_norm.{HOOK}": torch.tensor(2.5),
    }
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def write(repo: Path, content: dict[str, Tensor], said: dict[str, Any]) -> None:
    save(repo / PLACE / "sae_weights.safetensors", content)
    (repo / PLACE / "config.json").write_text(json.dumps(said))


def forward(x: Tensor, t: dict[str, Tensor], s: float, lengths: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """The threshold is in scaled units, and is not scaled again."""
    pre = s * x @ t["encoder.weight"].T + t["encoder.bias"]
    latents = pre.relu() * (pre * lengths > t["log_jumprelu_threshold"].exp())
    return latents, (latents @ t["decoder.weight"].T + t["decoder.bias"]) / s


@pytest.mark.parametrize("by_norm", [True, False])
def test_the_norm_in_the_weights_file_scales_the_input(tmp_path, by_norm):
    repo, t, x = tmp_path / "Llama-Scope-R1-Distill", tensors(), inputs(D)
    write(repo, t, config(sparsity_include_decoder_norm=by_norm))
    sae = AutoSAE.from_pretrained(repo, subfolder=PLACE)
    s = D**0.5 / 2.5
    check(sae, x, *forward(x, t, s, t["decoder.weight"].norm(dim=0) if by_norm else 1.0))
    assert (sae.config.input_norm, sae.config.input_scale) == ("scalar", pytest.approx(s, rel=1e-12))
    assert sae.config.base_model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert (sae.config.hook_in, sae.config.hook_out, sae.config.subtracts_bias) == ("resid_post.5", None, False)
    assert sae.config.provenance["conversion"]["format"] == "llama-scope-r1"
    assert len(transforms(sae)) == by_norm


def test_a_norm_in_the_config_does_as_well(tmp_path):
    t, x = tensors(**{f"dataset_average_activation_norm.{HOOK}": None}), inputs(D)
    write(tmp_path, t, config(dataset_average_activation_norm={HOOK: 1.6}))
    check(AutoSAE.from_pretrained(tmp_path, subfolder=PLACE), x, *forward(x, t, D**0.5 / 1.6))


def test_without_a_norm_the_scale_is_given_by_hand(tmp_path):
    t, x = tensors(**{f"dataset_average_activation_norm.{HOOK}": None}), inputs(D)
    write(tmp_path, t, config())
    with pytest.raises(CheckpointError, match="Give input_scale=, the square root of d_model over the mean norm"):
        AutoSAE.from_pretrained(tmp_path, subfolder=PLACE)
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=PLACE, input_scale=1.75)
    check(sae, x, *forward(x, t, 1.75))


def test_a_transcoder_has_two_norms(tmp_path):
    out = "blocks.5.hook_mlp_out"
    t = tensors(**{f"dataset_average_activation_norm.{out}": torch.tensor(0.8)})
    write(tmp_path, t, config(hook_point_in=HOOK, hook_point_out=out))
    sae, x = AutoSAE.from_pretrained(tmp_path, subfolder=PLACE), inputs(D)
    latents, reconstruction = forward(x, t, D**0.5 / 2.5)
    check(sae, x, latents, reconstruction * (D**0.5 / 2.5) / (D**0.5 / 0.8))
    assert (sae.config.hook_in, sae.config.hook_out) == ("resid_post.5", "mlp_out.5")


@pytest.mark.parametrize(
    ("content", "said", "message"),
    [
        ({}, {"sae_type": "clt"}, "sae_type='clt'"),
        ({}, {"act_fn": "topk"}, "act_fn='topk'"),
        ({}, {"norm_activation": "batch-wise"}, "norm_activation='batch-wise'"),
        ({}, {"expansion_factor": 5}, f"and {5 * D} latents"),
        ({"log_jumprelu_threshold": None}, {}, "lacks the tensor 'log_jumprelu_threshold'"),
        ({"encoder_glu.weight": torch.ones(2, 2)}, {}, "does not know: encoder_glu.weight"),
        ({f"dataset_average_activation_norm.{HOOK}": torch.tensor(-1.0)}, {}, "not a positive number"),
        ({}, {"d_model": None}, "lacks 'hook_point_in' or 'd_model'"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, content, said, message):
    write(tmp_path, tensors(**content), config(**said))
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path, subfolder=PLACE)
