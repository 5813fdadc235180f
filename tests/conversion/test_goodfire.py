"""Goodfire's single files against their layout."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from hf_sae import AutoSAE
from hf_sae.conversion import identify, open_files
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, inputs, save_pt, weights


D, F = 12, 40
FILE = "Llama-3.1-8B-Instruct-SAE-l19.pth"


def tensors(prefix: str = "_linear", **changes: Tensor) -> OrderedDict[str, Tensor]:
    w = weights(D, F)
    return OrderedDict(
        {
            f"encoder{prefix}.weight": w["W_enc"].T.contiguous(),
            f"encoder{prefix}.bias": w["b_enc"],
            f"decoder{prefix}.weight": w["W_dec"].T.contiguous(),
            f"decoder{prefix}.bias": w["b_dec"],
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("name", "host", "layer"),
    [(FILE, "Llama-3.1-8B-Instruct", 19), ("Llama-3.3-70B-Instruct-SAE-l50.pt", "Llama-3.3-70B-Instruct", 50)],
)
@pytest.mark.parametrize("asked", [True, False])
def test_the_one_file_of_a_repo(tmp_path, name, host, layer, asked):
    t, x = tensors(), inputs(D)
    save_pt(tmp_path / name, t)
    (tmp_path / "config.yaml").write_text("sae: {}")
    sae = AutoSAE.from_pretrained(tmp_path, subfolder=name if asked else "")
    latents = torch.relu(x @ t["encoder_linear.weight"].T + t["encoder_linear.bias"])
    check(sae, x, latents, latents @ t["decoder_linear.weight"].T + t["decoder_linear.bias"])
    config = sae.config
    assert (config.base_model, config.hook_in) == (f"meta-llama/{host}", f"resid_post.{layer}")
    assert (config.model_type, config.subtracts_bias) == ("hf_sae_standard", False)


def test_files_are_told_apart_by_name_and_not_opened(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is no torch file")
    (tmp_path / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt").write_bytes(b"nor is this")
    (tmp_path / "model.pt").write_bytes(b"nor this")
    assert identify(open_files(str(tmp_path), FILE)).NAME == "goodfire"
    assert identify(open_files(str(tmp_path), "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt")).NAME == "deepseek-r1"
    with pytest.raises(CheckpointError, match="is no autoencoder"):
        identify(open_files(str(tmp_path), "model.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensors(""), "lacks the tensor 'encoder_linear.weight'"),
        (tensors(pre_bias=torch.zeros(D)), "does not know: pre_bias"),
        (tensors(**{"encoder_linear.bias": torch.zeros(D)}), "b_enc has shape"),
    ],
)
def test_other_tensors_are_refused(tmp_path, content, message):
    save_pt(tmp_path / FILE, content)
    with pytest.raises(CheckpointError, match=message):
        AutoSAE.from_pretrained(tmp_path, subfolder=FILE)
