"""Checkpoints that SAELens saves load here with its own outputs, and what we write loads there.

Known divergences, tested as what we do: SAELens attaches `decode(encode(x))`, so a skip transcoder loses its skip there; its
`layer_norm` keeps the last input's statistics in the model, so a second `decode` fails there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


pytest.importorskip("sae_lens")

from sae_lens import SAE as PeerSAE  # noqa: N811
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)

from hf_sae import AutoSAE, AutoTranscoder
from hf_sae.conversion import saelens
from hf_sae.errors import ConversionError
from tests.conversion.layouts import close, inputs


D, D_OUT, F = 12, 10, 48
SAES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
    "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
}
TRANSCODERS = {
    "transcoder": (Transcoder, TranscoderConfig),
    "skip": (SkipTranscoder, SkipTranscoderConfig),
    "jumprelu": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
    "jumprelu-skip": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
}


TRAINED = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 5}),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 4.5}),
    "matryoshka": (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 4.5, "matryoshka_widths": [16, 48]},
    ),
}


def filled(sae: Any) -> Any:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.5)
            if name == "threshold":
                parameter.abs_()
    return sae.eval()


def peer(kind: str, **options: Any) -> Any:
    model, config, own = SAES[kind]
    meta = SAEMetadata(model_name="gpt2-small", hook_name="blocks.1.hook_resid_pre")
    return filled(model(config(d_in=D, d_sae=F, metadata=meta, **own, **options)))


def peer_transcoder(kind: str, **options: Any) -> Any:
    model, config = TRANSCODERS[kind]
    meta = SAEMetadata(
        hook_name="blocks.1.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out", model_name="gpt2-small"
    )
    return filled(model(config(d_in=D, d_sae=F, d_out=D_OUT, metadata=meta, apply_b_dec_to_input=False, **options)))


@torch.no_grad()
def same(ours: Any, theirs: Any) -> None:
    x = inputs(D)
    latents = theirs.encode(x)
    assert 0 < (latents != 0).float().mean() < 1
    close(ours.encode(x), latents)
    reconstruction = theirs(x)
    close(ours(x).reconstruction, reconstruction)
    if ours.skip is None:
        close(ours.decode(ours.encode_sparse(x)), reconstruction)


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("kind", SAES)
def test_theirs_here(tmp_path: Path, kind: str, pre_bias: bool, norm: str):
    theirs = peer(kind, apply_b_dec_to_input=pre_bias, normalize_activations=norm)
    theirs.save_model(tmp_path)
    ours = AutoSAE.from_pretrained(tmp_path)
    same(ours, theirs)
    assert (ours.config.hook_in, ours.config.base_model) == ("resid_pre.1", "openai-community/gpt2")
    assert ours.config.subtracts_bias is pre_bias


NORMED = [(kind, norm) for kind in TRANSCODERS for norm in ("none", "layer_norm", "constant_norm_rescale")]


@pytest.mark.parametrize(("kind", "norm"), NORMED)
def test_their_transcoders_here(tmp_path: Path, kind: str, norm: str):
    theirs = peer_transcoder(kind, normalize_activations=norm)
    theirs.save_model(tmp_path)
    if "skip" in kind and norm != "none":  # their skip sees the raw input, ours what the encoder sees
        with pytest.raises(ConversionError, match="raw input"):
            AutoTranscoder.from_pretrained(tmp_path)
        return
    ours = AutoTranscoder.from_pretrained(tmp_path)
    same(ours, theirs)
    assert (ours.config.hook_in, ours.config.hook_out) == ("mlp_in.1", "mlp_out.1")


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("kind", SAES)
def test_ours_there(tmp_path: Path, kind: str, pre_bias: bool, norm: str):
    peer(kind, apply_b_dec_to_input=pre_bias, normalize_activations=norm).save_model(tmp_path / "a")
    ours = AutoSAE.from_pretrained(tmp_path / "a")
    saelens.write(ours, tmp_path / "b")
    back = PeerSAE.load_from_disk(tmp_path / "b")
    same(ours, back)
    assert back.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize(("kind", "norm"), [(k, n) for k, n in NORMED if "skip" not in k or n == "none"])
def test_our_transcoders_there(tmp_path: Path, kind: str, norm: str):
    peer_transcoder(kind, normalize_activations=norm).save_model(tmp_path / "a")
    ours = AutoSAE.from_pretrained(tmp_path / "a")
    saelens.write(ours, tmp_path / "b")
    same(ours, PeerSAE.load_from_disk(tmp_path / "b"))


def test_a_scalar_norm_is_folded_for_them(tmp_path: Path):
    peer("topk").save_model(tmp_path / "a")
    ours = AutoSAE.from_pretrained(tmp_path / "a", input_norm="scalar", input_scale=0.37)
    saelens.write(ours, tmp_path / "b")
    same(ours, PeerSAE.load_from_disk(tmp_path / "b"))


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("kind", SAES)
def test_whitening_and_the_average_scale_as_they_fold_them(tmp_path: Path, kind: str, pre_bias: bool):
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(3)
    matrix = torch.randn(D, D, generator=g, dtype=torch.float64) / 4 + torch.eye(D, dtype=torch.float64)
    stored = {"mean": torch.randn(D, generator=g, dtype=torch.float64), "matrix": matrix}
    stored["inverse_matrix"] = torch.linalg.inv(matrix).contiguous()
    theirs = peer(kind, apply_b_dec_to_input=pre_bias, normalize_activations="covariance_whitening")
    theirs.save_model(tmp_path / "w")
    save_file(stored, tmp_path / "w" / "activation_whitening.safetensors")
    theirs.fold_activation_whitening(stored["mean"], matrix, stored["inverse_matrix"])
    same(AutoSAE.from_pretrained(tmp_path / "w"), theirs)
    theirs = peer(kind, apply_b_dec_to_input=pre_bias, normalize_activations="expected_average_only_in")
    theirs.save_model(tmp_path / "s")
    (tmp_path / "s" / "activation_scaler.json").write_text('{"scaling_factor": 0.31}')
    theirs.fold_activation_norm_scaling_factor(0.31)
    if kind != "topk-rescaled":  # after their fold the latents are 1 / 0.31 of what they were in training
        same(AutoSAE.from_pretrained(tmp_path / "s"), theirs)


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("kind", TRAINED)
def test_training_checkpoints_are_what_is_saved_for_inference(tmp_path: Path, kind: str, rescaled: bool):
    model, config, own = TRAINED[kind]
    meta = SAEMetadata(model_name="gpt2-small", hook_name="blocks.1.hook_resid_pre")
    theirs = filled(model(config(d_in=D, d_sae=F, metadata=meta, rescale_acts_by_decoder_norm=rescaled, **own)))
    if kind != "topk":
        theirs.topk_threshold.fill_(0.7)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    inference = PeerSAE.load_from_disk(tmp_path / "inference")
    assert inference.cfg.architecture() == ("topk" if kind == "topk" else "jumprelu")
    for folder in ("training", "inference"):
        same(AutoSAE.from_pretrained(tmp_path / folder), inference)


OLD = {
    "standard": {},
    "topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
    "layer_norm": {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False},
    "false": {"normalize_activations": False, "hook_point_head_index": None, "sae_lens_training_version": "4.0.0"},
}


@pytest.mark.parametrize("kind", OLD)
def test_version_five_as_they_read_it(tmp_path: Path, kind: str):
    peer("standard").save_model(tmp_path)
    cfg = {"hook_point": "blocks.1.hook_resid_pre", "model_name": "gpt2-small", "d_in": D, "d_sae": F}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"dtype": "torch.float32"} | OLD[kind]))
    ours, theirs = AutoSAE.from_pretrained(tmp_path), PeerSAE.load_from_disk(tmp_path)
    same(ours, theirs)
    assert (ours.config.hook_in, theirs.cfg.metadata.hook_name) == ("resid_pre.1", "blocks.1.hook_resid_pre")


def test_attached_skip_transcoders_keep_their_skip_here(tmp_path: Path):
    theirs = peer_transcoder("skip")
    theirs.save_model(tmp_path)
    x = inputs(D)
    ours = AutoSAE.from_pretrained(tmp_path)
    with torch.no_grad():
        assert not torch.allclose(theirs.decode(theirs.encode(x)), theirs(x))
        close(ours(x).reconstruction, theirs(x))


def test_decoding_twice_works_here(tmp_path: Path):
    theirs = peer("standard", normalize_activations="layer_norm")
    theirs.save_model(tmp_path)
    ours = AutoSAE.from_pretrained(tmp_path)
    with torch.no_grad():
        code = ours.encode_sparse(inputs(D))
        close(ours.decode(code), ours.decode(code))
        latents = theirs.encode(inputs(D))
        theirs.decode(latents)
        with pytest.raises(AttributeError):
            theirs.decode(latents)
