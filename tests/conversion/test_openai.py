"""OpenAI's autoencoders of GPT-2 against the formulas of their release, and against a GPT-2 host."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE, read
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, close, inputs, save_pt, top, weights
from tests.hosts_zoo import ZOO, text_inputs


D, F, K = 12, 40, 5


def state(activation: str | None = "TopK", tied: str = "", **changes: Any) -> dict[str, Any]:
    w = weights(D, F)
    content: dict[str, Any] = OrderedDict(
        {
            "pre_bias": w["b_dec"],
            "latent_bias": w["b_enc"],
            "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
            "latents_activation_frequency": torch.ones(F),
            "latents_mean_square": torch.zeros(F),
            "encoder.weight": w["W_enc"].T.contiguous(),
        }
    )
    if not tied:
        content["decoder.weight"] = w["W_dec"].T.contiguous()
    elif tied != "absent":
        content[tied] = content["encoder.weight"]
    if activation is not None:
        content["activation"] = activation
        content["activation_state_dict"] = (
            OrderedDict(k=K, postact_fn="ReLU") if activation == "TopK" else OrderedDict()
        )
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def load(tmp_path: Path, content: Any, place: str = "resid_post_mlp_v5_32k", layer: int = 8) -> Any:
    save_pt(tmp_path / f"gpt2-small/{place}/autoencoders/{layer}.pt", content)
    return AutoSAE.from_pretrained(tmp_path / "gpt2-small", subfolder=f"{place}/autoencoders/{layer}.pt")


def normed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    std = ((x - mean).square().sum(-1, keepdim=True) / (D - 1)).sqrt()
    return (x - mean) / (std + 1e-5), mean, std


def test_topk_reads_normed_activations_and_undoes_the_norm(tmp_path):
    t, x = state(), inputs(D)
    sae = load(tmp_path, t)
    n, mean, std = normed(x)
    latents = top((n - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"], K)
    check(sae, x, latents, (latents @ t["decoder.weight"].T + t["pre_bias"]) * std + mean)
    config = sae.config
    assert (config.k, config.input_norm, config.norm_eps, config.subtracts_bias) == (K, "layer_norm", 1e-5, True)
    assert (config.base_model, config.hook_in) == ("openai-community/gpt2", "resid_post.8")
    assert config.provenance["conversion"]["published"] == {"l0": float(K)}


@pytest.mark.parametrize("activation", ["ReLU", None])
def test_relu_reads_activations_as_they_are(tmp_path, activation):
    t, x = state(activation), inputs(D)
    sae = load(tmp_path, t, "resid_delta_mlp_v4")
    latents = torch.relu((x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"])
    check(sae, x, latents, latents @ t["decoder.weight"].T + t["pre_bias"])
    assert (sae.config.input_norm, sae.config.hook_in) == ("none", "mlp_out.8")


@pytest.mark.parametrize("tied", ["absent", "decoder.linear.weight"])
def test_a_tied_decoder_is_the_encoder_and_shares_no_memory_with_it(tmp_path, tied):
    t, x = state("ReLU", tied), inputs(D)
    sae = load(tmp_path, t, "resid_delta_mlp")
    latents = torch.relu((x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"])
    check(sae, x, latents, latents @ t["encoder.weight"] + t["pre_bias"])
    assert sae.encoder.weight.data_ptr() != sae.decoder.weight.data_ptr()


@pytest.mark.parametrize(
    ("place", "point", "other"),
    [
        ("resid_delta_attn_v5_128k", "attn_out.1", "transformer.h.1.attn:output"),
        ("resid_post_attn_v5_32k", "resid_mid.1", "transformer.h.1.ln_2:input"),
        ("resid_delta_mlp", "mlp_out.1", "transformer.h.1.mlp:output"),
        ("resid_post_mlp_v5_32k", "resid_post.1", "transformer.h.1"),
        ("mlp_post_act_v4", "h.1.mlp.act:output", "transformer.h.1.mlp.c_proj:input"),
    ],
)
def test_the_places_are_those_of_a_gpt2_host(tmp_path, place, point, other):
    assert load(tmp_path, state(), place, 1).config.hook_in == point
    host = ZOO["gpt2"]()
    for model, prefix in ((host, ""), (host.transformer, "transformer.")):
        acts = read(model, [point, other.removeprefix(prefix)], **text_inputs())
        close(acts[point], acts[other.removeprefix(prefix)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (state(activation_state_dict={"k": K, "postact_fn": "Identity"}), "postact_fn='ReLU'"),
        (state(activation_state_dict=None), "k=None"),
        (state(activation_state_dict={"k": F + 1}), f"k={F + 1}"),
        (state("Identity"), "activation='Identity'"),
        (state(tied="decoder.linear.weight") | {"decoder.linear.weight": torch.ones(F, D)}, "are not the encoder's"),
        (state(pre_bias=None), "lacks the tensor 'pre_bias'"),
        (state(post_bias=torch.zeros(D)), "does not know: post_bias"),
        (state(normalize=False), "does not know: normalize"),
        (state(latent_bias=torch.zeros(D)), "b_enc has shape"),
        ([torch.zeros(2)], "not a state dict"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, content)
