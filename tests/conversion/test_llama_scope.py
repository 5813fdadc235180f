"""Llama Scope against its layout, and against how the authors' library folds scales and norms into the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, close, inputs, jump, rms, save, transforms, weights


D, F = 16, 40
PLACE = "Llama3_1-8B-Base-L8R-8x"


def hyperparams(**changes: Any) -> dict[str, Any]:
    """The keys of a published file that have to do with inference."""
    return {
        "dtype": "torch.float32",
        "hook_point_in": "blocks.8.hook_resid_post",
        "hook_point_out": "blocks.8.hook_resid_post",
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": F // D,
        "d_model": D,
        "d_sae": F,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.2,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": 5,
    } | changes


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    w = weights(D, F)
    return {
        "encoder.weight": w["W_enc"].T.to(dtype),
        "encoder.bias": w["b_enc"].to(dtype),
        "decoder.weight": w["W_dec"].T.to(dtype),
        "decoder.bias": w["b_dec"].to(dtype),
    }


def write(repo: Path, content: dict[str, Tensor], said: dict[str, Any], place: str = PLACE) -> None:
    save(repo / place / "checkpoints/final.safetensors", content)
    (repo / place / "hyperparams.json").write_text(json.dumps(said))


def authors_forward(x: Tensor, t: dict[str, Tensor], said: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Latents and output once the scales and the decoder's norms are in the weights; the activations are the host's."""
    norm = said["dataset_average_activation_norm"]
    s_in, s_out = D**0.5 / norm["in"], D**0.5 / norm["out"]
    decoder = t["decoder.weight"] * s_in / s_out
    length = decoder.norm(dim=0) if said["sparsity_include_decoder_norm"] else torch.ones(F)
    pre = x @ (t["encoder.weight"] * length[:, None]).T + t["encoder.bias"] / s_in * length
    latents = jump(pre, said["jump_relu_threshold"])
    return latents, latents @ (decoder / length).T + t["decoder.bias"] / s_out


@pytest.mark.parametrize("by_norm", [True, False])
def test_an_autoencoder_is_what_the_authors_library_makes_of_it(tmp_path, by_norm):
    t, said, x = tensors(), hyperparams(sparsity_include_decoder_norm=by_norm), inputs(D)
    write(tmp_path, t, said)
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=PLACE)
    theirs, out = authors_forward(x, t, said)
    s = D**0.5 / 2.5
    # theirs are in units of the host and of unit rows; ours in those of the file
    latents = theirs * s / (t["decoder.weight"].norm(dim=0) if by_norm else 1)
    check(sae, x, latents, out)
    assert (sae.config.input_norm, sae.config.subtracts_bias) == ("scalar", False)
    assert sae.config.input_scale == pytest.approx(s, rel=1e-12)
    assert (sae.config.base_model, sae.config.hook_in, sae.config.hook_out) == (
        "meta-llama/Llama-3.1-8B",
        "resid_post.8",
        None,
    )
    assert sae.config.provenance["conversion"]["published"] == {"l0": 5.0}
    assert transforms(sae) == (["thresholds divided by the norms of the decoder's rows"] if by_norm else [])


def test_the_threshold_of_a_published_layer(tmp_path):
    """L0A-32x: threshold and norm as published, with unit rows; 4,096 dimensions, and 3 of the 131,072 latents."""
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(3, 4096, generator=g), dim=-1)
    content = {
        "encoder.weight": rows,
        "encoder.bias": torch.zeros(3),
        "decoder.weight": rows.T,
        "decoder.bias": torch.zeros(4096),
    }
    said = hyperparams(
        d_model=4096,
        d_sae=3,
        jump_relu_threshold=0.00946044921875,
        dataset_average_activation_norm={"in": 0.5703125, "out": 0.5703125},
        hook_point_in="blocks.0.hook_attn_out",
        hook_point_out="blocks.0.hook_attn_out",
    )
    write(tmp_path, content, said, "Llama3_1-8B-Base-L0A-32x")
    sae = AutoSAE.from_pretrained(tmp_path, subfolder="Llama3_1-8B-Base-L0A-32x")
    assert sae.config.input_scale == 112.21917808219177
    close(sae.threshold.detach(), torch.full((3,), 1.0616438356164384))
    assert sae.config.hook_in == "attn_out.0"


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("subtracts", [True, False])
def test_a_transcoder_has_two_scales_and_its_threshold_is_in_those_of_what_it_writes(tmp_path, by_norm, subtracts):
    t = tensors()
    said = hyperparams(
        hook_point_in="blocks.21.ln2.hook_normalized",
        hook_point_out="blocks.21.hook_mlp_out",
        dataset_average_activation_norm={"in": 3.9, "out": 0.7},
        jump_relu_threshold=0.1,
        sparsity_include_decoder_norm=by_norm,
        apply_decoder_bias_to_pre_encoder=subtracts,
    )
    place = "Llama3_1Base-L21TC-32x"
    write(tmp_path, t, said, place)
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=place)
    assert (sae.config.hook_in, sae.config.hook_out) == ("resid_mid.21", "mlp_out.21")
    assert (sae.config.input_norm, sae.config.norm_eps) == ("unit_rms", 1e-5)
    x = inputs(D)
    s_in, s_out = D**0.5 / 3.9, D**0.5 / 0.7
    read = rms(x, 1e-5) - (t["decoder.bias"] / s_in if subtracts else 0)
    theirs, out = authors_forward(read, t, said)
    latents = theirs * (s_out / t["decoder.weight"].norm(dim=0) if by_norm else s_in)
    check(sae, x, latents, out)


def test_weights_of_bfloat16_stay_what_they_were(tmp_path):
    t = tensors(torch.bfloat16)
    write(tmp_path, t, hyperparams())
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=PLACE)
    assert torch.equal(sae.encoder.weight.bfloat16(), t["encoder.weight"])
    assert sae.threshold.dtype == torch.float32
    norms = t["decoder.weight"].float().norm(dim=0)
    close(sae.threshold.detach(), 0.2 * D**0.5 / 2.5 / norms)


def test_a_minimal_config_is_read_as_saelens_reads_it(tmp_path):
    t, x = tensors(), inputs(D)
    keys = ("hook_point_in", "d_model", "d_sae", "jump_relu_threshold")
    said = {key: value for key, value in hyperparams().items() if key in keys}
    write(tmp_path, t, said | {"dataset_average_activation_norm": {"in": 2.5}})
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=PLACE)
    s = D**0.5 / 2.5
    latents = jump(s * x @ t["encoder.weight"].T + t["encoder.bias"], 0.2 * s)
    check(sae, x, latents, (latents @ t["decoder.weight"].T + t["decoder.bias"]) / s)


def test_another_host_is_given_by_hand_and_needed_where_it_says_the_norm(tmp_path):
    write(tmp_path / "mine", tensors(), hyperparams(), "layer")
    assert AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer", base_model="o/m").config.base_model == "o/m"
    norm = hyperparams(hook_point_in="blocks.1.ln2.hook_normalized", hook_point_out="blocks.1.hook_mlp_out")
    write(tmp_path / "mine", tensors(), norm, "other")
    with pytest.raises(CheckpointError, match="base_model='org/model'"):
        AutoSAE.from_pretrained(tmp_path / "mine", subfolder="other")
    sae = AutoSAE.from_pretrained(tmp_path / "mine", subfolder="other", base_model="EleutherAI/pythia-70m")
    assert sae.config.input_norm == "unit_ln"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"act_fn": "topk"}, "act_fn='topk'"),
        ({"norm_activation": "token-wise"}, "norm_activation='token-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder=True"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold=None"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": {"in": 0.0}}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": {"in": 2.5, "out": 2.6}}, "with two scales"),
        ({"d_sae": F + 1}, f"and {F + 1} latents"),
        ({"d_model": D * 2}, f"says {D * 2} dimensions"),
        ({"use_decoder_bias": False}, "does not know: decoder.bias"),
        ({"hook_point_in": None}, "lacks 'hook_point_in'"),
        ({"hook_point_in": "blocks.1.attn.hook_q", "hook_point_out": None}, "no place by meaning"),
    ],
)
def test_what_is_not_known_or_contradicts_is_refused(tmp_path, said, message):
    write(tmp_path, tensors(), hyperparams(**said))
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path, subfolder=PLACE)
