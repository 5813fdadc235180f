"""Gemma Scope 1 against the table of its layout and against a Gemma 2 host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE, AutoTranscoder, read
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, close, inputs, jump, rms, transforms, weights
from tests.hosts_zoo import ZOO, text_inputs


D, F = 12, 1024


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("repo", "host", "point"),
    [
        ("gemma-scope-2b-pt-res", "google/gemma-2-2b", "resid_post.20"),
        ("gemma-scope-9b-it-res", "google/gemma-2-9b-it", "resid_post.20"),
        ("gemma-scope-9b-pt-att", "google/gemma-2-9b", "attn_z.20"),
        ("gemma-scope-27b-pt-mlp", "google/gemma-2-27b", "mlp_out.20"),
    ],
)
def test_autoencoders_of_the_three_places(tmp_path, repo, host, point):
    w, x = weights(D, F), inputs(D)
    write(tmp_path / repo / "layer_20/width_1k/average_l0_71", w)
    sae = AutoSAE.from_pretrained(tmp_path / repo, subfolder="layer_20/width_1k/average_l0_71")
    latents = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, latents, latents @ w["W_dec"] + w["b_dec"])
    config = sae.config
    assert (config.base_model, config.hook_in, config.hook_out) == (host, point, None)
    assert (config.d_in, config.d_sae, config.subtracts_bias, config.input_norm) == (D, F, False, "none")
    assert config.target_l0 == 71
    assert config.provenance["conversion"]["published"] == {"l0": 71.0}
    assert config.provenance["conversion"]["format"] == "gemma-scope"
    assert transforms(sae) == []


def test_an_embedding_autoencoder_reads_what_the_hosts_first_block_reads(tmp_path):
    d = 2304  # the factor of gemma-2-2b is √2304 = 48
    w, embedding = weights(d, F), inputs(d)
    write(tmp_path / "gemma-scope-2b-pt-res/embedding/width_1k/average_l0_6", w)
    sae = AutoSAE.from_pretrained(tmp_path / "gemma-scope-2b-pt-res", subfolder="embedding/width_1k/average_l0_6")
    assert sae.config.hook_in == "resid_pre.0"
    assert 1 / sae.config.input_scale == pytest.approx(48.0, rel=1e-12)
    latents = jump(embedding @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, embedding * 48, latents, 48 * (latents @ w["W_dec"] + w["b_dec"]))
    assert any("√d_in" in line for line in transforms(sae))


def test_a_transcoder_reads_the_norm_before_its_gain_and_writes_after_the_last_norm(tmp_path):
    w, x = weights(D, F), inputs(D)
    write(tmp_path / "gemma-scope-2b-pt-transcoders/layer_3/width_1k/average_l0_54", w)
    sae = AutoTranscoder.from_pretrained(
        tmp_path / "gemma-scope-2b-pt-transcoders", subfolder="layer_3/width_1k/average_l0_54"
    )
    config = sae.config
    assert (config.hook_in, config.hook_out) == ("resid_mid.3", "mlp_out.3")
    assert (config.input_norm, config.norm_eps) == ("unit_rms", 1e-6)
    latents = jump(rms(x, 1e-6) @ w["W_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, latents, latents @ w["W_dec"] + w["b_dec"])


def test_the_places_are_those_of_a_gemma_2_host(tmp_path):
    torch.manual_seed(3)
    host, ids = ZOO["gemma2"](), text_inputs()
    block = host.model.layers[1]
    for norm in (block.pre_feedforward_layernorm, block.post_feedforward_layernorm):
        norm.weight.data.normal_(std=0.5)
    write(tmp_path / "gemma-scope-2b-pt-transcoders/layer_1/width_1k/average_l0_54", weights(32, F))
    sae = AutoSAE.from_pretrained(
        tmp_path / "gemma-scope-2b-pt-transcoders", subfolder="layer_1/width_1k/average_l0_54"
    )
    before, after = "model.layers.1.pre_feedforward_layernorm", "model.layers.1.post_feedforward_layernorm"
    acts = read(host, ["resid_mid.1", before, "mlp_out.1", after, "resid_pre.0", "attn_z.1"], **ids)
    gain = 1 + block.pre_feedforward_layernorm.weight.detach()
    close(sae.normalize(acts["resid_mid.1"])[0] * gain, acts[before])
    assert torch.equal(acts["mlp_out.1"], acts[after])
    close(acts["resid_pre.0"], host.model.embed_tokens.weight.detach()[ids["input_ids"]] * 32**0.5)
    assert acts["attn_z.1"].shape[-1] == host.config.num_attention_heads * host.config.head_dim


def test_the_innermost_names_count(tmp_path):
    folder = tmp_path / "layer_9/embedding_tests/gemma-scope-2b-pt-res"
    write(folder / "layer_20/width_1k/average_l0_71", weights(D, F))
    assert AutoSAE.from_pretrained(folder / "layer_20/width_1k/average_l0_71").config.hook_in == "resid_post.20"


def test_a_scaling_factor_of_ones_is_dropped_and_another_one_refused(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res"
    w = weights(D, F)
    write(folder / "layer_1/width_1k/average_l0_1", {**w, "scaling_factor": torch.ones(F)})
    write(folder / "layer_2/width_1k/average_l0_1", {**w, "scaling_factor": torch.full((F,), 1.01)})
    sae = AutoSAE.from_pretrained(folder, subfolder="layer_1/width_1k/average_l0_1")
    assert torch.equal(sae.W_enc, w["W_enc"])
    with pytest.raises(CheckpointError, match="scaling_factor"):
        AutoSAE.from_pretrained(folder, subfolder="layer_2/width_1k/average_l0_1")


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("layer_1/width_16k/average_l0_1", {}, "width_16k and its tensors have 1,024 latents"),
        ("layer_1/width_1k/average_l0_1", {"threshold": None}, "lacks the tensor 'threshold'"),
        ("layer_1/width_1k/average_l0_1", {"b_gate": torch.ones(F)}, "does not know: b_gate"),
        ("layer_1/width_1k/average_l0_1", {"b_enc": torch.ones(F + 1)}, "b_enc has shape"),
        ("layer_1/width_1k/average_l0_1", {"W_dec": torch.ones(F - 1, D)}, "same number of latents"),
        ("layer_1/width_1k/average_l0_1", {"threshold": torch.ones(7)}, "7 thresholds for 1024 latents"),
        ("width_1k/average_l0_1", {}, "does not say host, place and layer"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, place, change, message):
    tensors = {name: value for name, value in {**weights(D, F), **change}.items() if value is not None}
    write(tmp_path / "gemma-scope-2b-pt-res" / place, tensors)
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path / "gemma-scope-2b-pt-res", subfolder=place)


def test_names_without_a_host_are_refused(tmp_path):
    write(tmp_path / "mine/layer_1/width_1k/average_l0_1", weights(D, F))
    with pytest.raises(CheckpointError, match="Keep its names"):
        AutoSAE.from_pretrained(tmp_path / "mine", subfolder="layer_1/width_1k/average_l0_1")
