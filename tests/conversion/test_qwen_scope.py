"""Qwen Scope against the table of its layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, inputs, save_pt, top, weights


D, F, K = 24, 1024, 7
REPO = f"SAE-Res-Qwen3-1.7B-Base-W1K-L0_{K}"


def tensors(**changes: object) -> dict[str, Tensor]:
    w = weights(D, F)
    content = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous()}
    content |= {"b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def write(repo: Path, content: object) -> None:
    for layer in (3, 12):
        save_pt(repo / f"layer{layer}.sae.pt", content)


@pytest.mark.parametrize("place", ["layer12.sae.pt", "layer12.sae"])
def test_a_layer_with_or_without_its_extension(tmp_path, place):
    t, x = tensors(), inputs(D)
    write(tmp_path / REPO, t)
    sae = AutoSAE.from_pretrained(tmp_path / REPO, subfolder=place)
    latents = top(torch.einsum("bti,fi->btf", x, t["W_enc"]) + t["b_enc"], K)
    check(sae, x, latents, torch.einsum("btf,of->bto", latents, t["W_dec"]) + t["b_dec"])
    config = sae.config
    assert (config.k, config.d_sae, config.subtracts_bias, config.input_norm) == (K, F, False, "none")
    assert (config.base_model, config.hook_in) == ("Qwen/Qwen3-1.7B-Base", "resid_post.12")
    assert config.provenance["conversion"]["published"] == {"l0": float(K)}


def test_where_k_latents_are_positive_the_authors_example_without_a_rectifier_gives_the_same(tmp_path):
    t, x = tensors(), inputs(D)
    write(tmp_path / REPO, t)
    sae = AutoSAE.from_pretrained(tmp_path / REPO, subfolder="layer3.sae.pt")
    values, indices = (x @ t["W_enc"].T + t["b_enc"]).topk(K, dim=-1)
    assert (values > 0).all()
    assert torch.allclose(sae.encode(x), torch.zeros(2, 5, F).scatter(-1, indices, values), atol=1e-6)


def test_the_text_tower_of_qwen_3_5(tmp_path):
    repo = tmp_path / f"SAE-Res-Qwen3.5-27B-W1K-L0_{K}"
    write(repo, tensors())
    config = AutoSAE.from_pretrained(repo, subfolder="layer3.sae.pt").config
    assert (config.base_model, config.hook_in) == ("Qwen/Qwen3.5-27B", "text:resid_post.3")


@pytest.mark.parametrize(
    ("repo", "content", "message"),
    [
        ("SAE-Res-Qwen3-1.7B-Base-W2K-L0_7", tensors(), "named W2K, 2,048 latents, and the tensors have 1,024"),
        ("SAE-Res-Qwen3-1.7B-Base-W1K-L0_2000", tensors(), "k=2000"),
        ("mine", tensors(), "does not say host, width and k"),
        (REPO, tensors(b_enc=None), "lacks the tensor 'b_enc'"),
        (REPO, tensors(threshold=torch.ones(F)), "does not know: threshold"),
        (REPO, tensors(W_dec=torch.ones(D, F - 1)), "same number of latents"),
        (REPO, [1, 2], "not a dictionary of tensors"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, repo, content, message):
    write(tmp_path / repo, content)
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path / repo, subfolder="layer12.sae.pt")
