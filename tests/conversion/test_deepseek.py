"""The autoencoders of DeepSeek-R1's distillations against their layout."""

from __future__ import annotations

import pytest
import torch

from hf_sae import AutoSAE
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, inputs, save_pt
from tests.conversion.test_goodfire import D, F, tensors


@pytest.mark.parametrize(("size", "layer"), [("8B", 19), ("70B", 48)])
def test_the_one_file_of_a_repo(tmp_path, size, layer):
    t, x = tensors(""), inputs(D)
    save_pt(tmp_path / f"DeepSeek-R1-Distill-Llama-{size}-SAE-l{layer}.pt", t)
    sae = AutoSAE.from_pretrained(tmp_path)
    latents = torch.relu(torch.einsum("bti,fi->btf", x, t["encoder.weight"]) + t["encoder.bias"])
    check(sae, x, latents, torch.einsum("btf,of->bto", latents, t["decoder.weight"]) + t["decoder.bias"])
    config = sae.config
    assert config.base_model == f"deepseek-ai/DeepSeek-R1-Distill-Llama-{size}"
    assert (config.hook_in, config.subtracts_bias, config.d_sae) == (f"resid_post.{layer}", False, F)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensors("_linear"), "lacks the tensor 'encoder.weight'"),
        (tensors("", threshold=torch.zeros(F)), "does not know: threshold"),
        (tensors("", **{"decoder.weight": torch.zeros(D, F + 1)}), "same number of latents"),
    ],
)
def test_other_tensors_are_refused(tmp_path, content, message):
    save_pt(tmp_path / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", content)
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path)
