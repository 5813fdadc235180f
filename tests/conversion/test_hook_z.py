"""The autoencoders of GPT-2's heads, and the value biases that their trainer's host had moved away."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_sae import AutoSAE, read
from hf_sae.conversion.hook_z import MOVED, SHIFTED, move_value_bias
from hf_sae.errors import ConversionError
from tests.conversion.layouts import check, close, inputs, save_pt, transforms, weights


D, F = 12, 48
NAME = "gpt2-small_L1_Hcat_z_lr1.20e-03_l11.00e+00_ds48_bs4096_v9"


def put(folder: Path, **options: Any) -> dict[str, Tensor]:
    w = weights(D, F)
    w.pop("threshold")
    cfg = {"act_name": "blocks.1.attn.hook_z", "act_size": D, "dict_size": F, "model_name": "gpt2-small"}
    cfg |= {"seq_len": 128, "concat_heads": True, "layer": 1, "lr": 0.0012} | options
    save_pt(folder / f"{NAME}.pt", w)
    (folder / f"{NAME}_cfg.json").write_text(json.dumps(cfg))
    return w


def host() -> nn.Module:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=D, n_layer=2, n_head=3, n_positions=16)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:  # all zero or one when they are made
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("place", [NAME, f"{NAME}.pt"])
def test_the_layout(tmp_path: Path, place: str):
    w, x = put(tmp_path), inputs(D)
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=place)
    z = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    check(sae, x, z, z @ w["W_dec"] + w["b_dec"])
    assert (sae.config.hook_in, sae.config.base_model) == ("attn_z.1", "openai-community/gpt2")
    assert sae.config.provenance["data"] == {"context_length": 128}
    assert transforms(sae) == [SHIFTED]


@torch.no_grad()
def test_value_biases_of_the_host(tmp_path: Path):
    put(tmp_path)
    published = host()
    # TransformerLens' heads: values without any constant part, of the same norms' outputs
    processed = copy.deepcopy(published)
    block = processed.transformer.h[1]
    block.attn.c_attn.bias[2 * D :] = -(block.ln_1.bias @ block.attn.c_attn.weight[:, 2 * D :])
    ids = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    x, theirs = (read(m, "attn_z.1", input_ids=ids)["attn_z.1"] for m in (published, processed))
    sae = AutoSAE.from_pretrained(tmp_path)
    expected, latents = sae(theirs).reconstruction, sae.encode(theirs)
    assert not torch.allclose(sae.encode(x), latents, atol=1e-2)
    assert move_value_bias(sae, nn.DataParallel(published)) is sae
    close(sae.encode(x), latents)
    close(sae(x).reconstruction - x, expected - theirs)
    assert transforms(sae) == [MOVED]
    with pytest.raises(ConversionError, match="nothing to move"):
        move_value_bias(sae, published)


def test_hosts_that_do_not_fit(tmp_path: Path):
    put(tmp_path)
    sae = AutoSAE.from_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="no block 1 of GPT-2"):
        move_value_bias(sae, nn.Linear(2, 2))
    other = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=3, n_positions=16))
    with pytest.raises(ConversionError, match="24 wide"):
        move_value_bias(sae, other)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"act_name": "blocks.1.hook_resid_pre"}, "hook_resid_pre"),
        ({"concat_heads": False}, "concat_heads=False"),
        ({"act_size": D + 1}, "act_size=13"),
        ({"dict_size": F + 1}, "dict_size=49"),
    ],
)
def test_refused_with_the_reason(tmp_path: Path, options: dict[str, Any], reason: str):
    put(tmp_path, **options)
    with pytest.raises(ConversionError, match=reason):
        AutoSAE.from_pretrained(tmp_path)


def test_other_tensors_are_refused(tmp_path: Path):
    w = put(tmp_path)
    save_pt(tmp_path / f"{NAME}.pt", w | {"threshold": torch.ones(F)})
    with pytest.raises(ConversionError, match="threshold"):
        AutoSAE.from_pretrained(tmp_path)
