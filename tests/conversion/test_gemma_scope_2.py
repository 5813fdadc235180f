"""Gemma Scope 2 against the table of its layout and against a Gemma 3 host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE, read
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, close, inputs, jump, save, transforms, weights
from tests.hosts_zoo import ZOO, text_inputs


D, F = 12, 1024
PLACES = {
    "resid_post": "model.layers.13.output",
    "attn_out": "model.layers.13.self_attn.o_proj.input",
    "mlp_out": "model.layers.13.post_feedforward_layernorm.output",
    "transcoder": "model.layers.13.pre_feedforward_layernorm.output",
}


def tensors(affine: bool = False, **changes: Any) -> dict[str, Tensor]:
    w = {name.lower(): tensor for name, tensor in weights(D, F).items()}
    if affine:
        w["affine_skip_connection"] = torch.randn(D, D, generator=torch.Generator().manual_seed(5))
    return {name: value for name, value in {**w, **changes}.items() if value is not None}


def config(kind: str, affine: bool = False, **changes: Any) -> dict[str, Any]:
    out = PLACES["mlp_out"] if kind == "transcoder" else PLACES[kind]
    return {
        "hf_hook_point_in": PLACES[kind],
        "hf_hook_point_out": out,
        "width": F,
        "model_name": "gemma-v3-1b-pt",
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": affine,
        "type": "transcoder" if kind == "transcoder" else "sae",
    } | changes


def write(folder: Path, content: dict[str, Tensor], said: dict[str, Any] | None = None) -> None:
    save(folder / "params.safetensors", content)
    if said is not None:
        (folder / "config.json").write_text(json.dumps(said))


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("kind", "point"), [("resid_post", "resid_post.13"), ("attn_out", "attn_z.13"), ("mlp_out", "mlp_out.13")]
)
def test_autoencoders_with_a_config_and_by_their_names(tmp_path, kind, point, with_config):
    repo, place = tmp_path / "gemma-scope-2-1b-pt", f"{kind}_all/layer_13_width_1k_l0_big"
    w, x = tensors(), inputs(D)
    write(repo / place, w, config(kind) if with_config else None)
    sae = AutoSAE.from_pretrained(repo, subfolder=place)
    latents = jump(x @ w["w_enc"] + w["b_enc"], w["threshold"])
    check(sae, x, latents, latents @ w["w_dec"] + w["b_dec"])
    assert (sae.config.base_model, sae.config.hook_in, sae.config.hook_out) == ("google/gemma-3-1b-pt", point, None)
    assert (sae.config.subtracts_bias, sae.config.input_norm) == (False, "none")
    assert sae.config.provenance["conversion"]["published"] == ({"l0": 60.0} if with_config else {})
    assert transforms(sae) == []


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_transcoders_with_and_without_the_affine_path(tmp_path, affine, with_config):
    repo, place = tmp_path / "gemma-scope-2-1b-pt", "transcoder/layer_13_width_1k_l0_big" + "_affine" * affine
    w, x = tensors(affine), inputs(D)
    write(repo / place, w, config("transcoder", affine) if with_config else None)
    sae = AutoSAE.from_pretrained(repo, subfolder=place)
    latents = jump(x @ w["w_enc"] + w["b_enc"], w["threshold"])
    out = latents @ w["w_dec"] + w["b_dec"]
    if affine:
        # square, so no shape would tell that it must not be transposed
        out = out + torch.einsum("bti,io->bto", x, w["affine_skip_connection"])
    check(sae, x, latents, out)
    assert (sae.config.hook_in, sae.config.hook_out, sae.config.skip) == ("mlp_in.13", "mlp_out.13", affine)


@pytest.mark.parametrize(
    ("repo", "model_name", "host", "point"),
    [
        ("gemma-scope-2-270m-pt", "gemma-v3-270m-pt", "google/gemma-3-270m", "resid_post.13"),
        ("gemma-scope-2-270m-pt", None, "google/gemma-3-270m", "resid_post.13"),
        ("gemma-scope-2-270m-it", None, "google/gemma-3-270m-it", "resid_post.13"),
        ("gemma-scope-2-4b-it", "google/gemma-3-4b-it", "google/gemma-3-4b-it", "text:resid_post.13"),
        ("gemma-scope-2-12b-pt", None, "google/gemma-3-12b-pt", "text:resid_post.13"),
        ("gemma-scope-2-27b-it", "gemma-v3-27b-it", "google/gemma-3-27b-it", "text:resid_post.13"),
    ],
)
def test_the_hosts_id_and_its_text_tower(tmp_path, repo, model_name, host, point):
    place = "resid_post/layer_13_width_1k_l0_small"
    write(tmp_path / repo / place, tensors(), config("resid_post", model_name=model_name) if model_name else None)
    sae = AutoSAE.from_pretrained(tmp_path / repo, subfolder=place)
    assert (sae.config.base_model, sae.config.hook_in) == (host, point)


def test_a_config_alone_says_it_in_a_folder_of_another_name(tmp_path):
    write(tmp_path / "mine", tensors(), config("attn_out"))
    sae = AutoSAE.from_pretrained(tmp_path / "mine")
    assert (sae.config.base_model, sae.config.hook_in) == ("google/gemma-3-1b-pt", "attn_z.13")


def test_the_places_are_those_of_a_gemma_3_host():
    host = ZOO["gemma3"]()
    pairs = {
        "mlp_in.1": "model.layers.1.pre_feedforward_layernorm",
        "mlp_out.1": "model.layers.1.post_feedforward_layernorm",
        "attn_z.1": "model.layers.1.self_attn.o_proj:input",
        "resid_post.1": "model.layers.1",
    }
    acts = read(host, [*pairs, *pairs.values()], **text_inputs())
    for place, path in pairs.items():
        assert acts[place].abs().max() > 0
        close(acts[place], acts[path])


@pytest.mark.parametrize(
    ("place", "content", "said", "message"),
    [
        ("clt/width_1k_l0_big_affine/params_layer_0", {}, None, "cross-layer transcoder"),
        ("crosscoder/layer_7_13_width_1k_l0_big", {}, None, "say the place"),
        ("resid_post/layer_13_width_1k_l0_big", {}, {"type": "crosscoder"}, "more than one place"),
        ("resid_post/layer_13_width_1k_l0_big", {}, {"architecture": "topk"}, "architecture='topk'"),
        ("resid_post/layer_12_width_1k_l0_big", {}, {}, "say 'resid_post.12'"),
        ("mlp_out/layer_13_width_1k_l0_big", {}, {}, "say 'mlp_out.13'"),
        ("resid_post/layer_13_width_16k_l0_big", {}, {}, "named width_16k"),
        ("resid_post/layer_13_width_1k_l0_big", {}, {"width": 2048}, "says width 2048"),
        ("resid_post/layer_13_width_1k_l0_big", {"b_dec": None}, {}, "lacks the tensor 'b_dec'"),
        ("resid_post/layer_13_width_1k_l0_big", {"b_gate": torch.ones(F)}, {}, "does not know: b_gate"),
        ("resid_post/layer_13_width_1k_l0_big", {"w_enc": torch.ones(D, F + 1)}, {}, "same number of latents"),
    ],
)
def test_what_contradicts_or_is_something_else_is_refused(tmp_path, place, content, said, message):
    write(
        tmp_path / "gemma-scope-2-1b-pt" / place,
        tensors(**content),
        None if said is None else config("resid_post", **said),
    )
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path / "gemma-scope-2-1b-pt", subfolder=place)


@pytest.mark.parametrize(
    ("name", "affine", "said", "message"),
    [
        ("_affine", False, None, "lacks the tensor 'affine_skip_connection', against its name"),
        ("", True, False, "has the tensor 'affine_skip_connection', against its config.json"),
        ("", False, True, "lacks the tensor 'affine_skip_connection', against its config.json"),
    ],
)
def test_the_affine_path_is_where_names_and_config_say(tmp_path, name, affine, said, message):
    repo, place = tmp_path / "gemma-scope-2-1b-pt", "transcoder/layer_13_width_1k_l0_big" + name
    write(repo / place, tensors(affine), None if said is None else config("transcoder", said))
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(repo, subfolder=place)


def test_a_published_cross_layer_layout_is_told_apart_by_its_folder(tmp_path):
    repo = tmp_path / "gemma-scope-2-1b-pt"
    save(repo / "clt/width_262k_l0_big_affine/params_layer_0.safetensors", tensors())
    for place in ("clt/width_262k_l0_big_affine", "clt/width_262k_l0_big_affine/params_layer_0"):
        with pytest.raises(CheckpointError, match=r"cross-layer transcoder \(CLT\)"):
            AutoSAE.from_pretrained(repo, subfolder=place)
