"""The GPT-2 transcoders of "Transcoders Find Interpretable LLM Feature Circuits": their file, and a host that they fit perfectly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sae import AutoTranscoder, splice
from hf_sae.conversion import identify, open_files
from hf_sae.errors import CheckpointError
from tests.conversion.layouts import check, close, inputs, save_pt, transforms, weights
from tests.hosts_zoo import gpt2, text_inputs


D, F, LAYER = 12, 40, 1


class Settings:
    """Stands for the config object of the authors' library: pickled by its class, which a reader does not have."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def settings(**changes: Any) -> Settings:
    values = {
        "is_transcoder": True,
        "hook_point": f"blocks.{LAYER}.ln2.hook_normalized",
        "out_hook_point": f"blocks.{LAYER}.hook_mlp_out",
        "dataset_path": "Skylion007/openwebtext",
        "context_size": 128,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return Settings(**{**values, **changes})


def state(**changes: Any) -> dict[str, Tensor]:
    w = weights(D, F)
    content = {
        "W_enc": w["W_enc"],
        "W_dec": w["W_dec"],
        "b_enc": w["b_enc"],
        "b_dec": torch.randn(D, generator=torch.Generator().manual_seed(8)),
        "b_dec_out": w["b_dec"],
    }
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def name(width: int = F, layer: int = LAYER) -> str:
    return f"final_sparse_autoencoder_gpt2-small_blocks.{layer}.ln2.hook_normalized_{width}.pt"


def load(folder: Path, tensors: dict[str, Tensor], cfg: Any = None, width: int = F) -> Any:
    save_pt(folder / name(width), {"cfg": settings() if cfg is None else cfg, "state_dict": tensors})
    save_pt(folder / name(width).replace(".pt", "_log_feature_sparsity.pt"), torch.zeros(width))
    return AutoTranscoder.from_pretrained(folder, subfolder=name(width))


def layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)


def test_the_input_has_a_bias_of_its_own(tmp_path):
    t, x = state(), inputs(D)
    sae = load(tmp_path, t)
    latents = torch.relu((layer_norm(x) - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    check(sae, x, latents, latents @ t["W_dec"] + t["b_dec_out"])
    config = sae.config
    assert (config.hook_in, config.hook_out, config.center_target) == ("resid_mid.1", "mlp_out.1", True)
    assert (config.input_norm, config.norm_eps, config.subtracts_bias) == ("unit_ln", 1e-5, False)
    assert config.base_model == "openai-community/gpt2"
    assert config.provenance["data"] == {"dataset": "Skylion007/openwebtext", "context_length": 128}
    assert [line for line in transforms(sae) if "subtracted from the input" in line]
    assert [line for line in transforms(sae) if "minus its mean" in line]


def test_a_perfect_transcoder_in_place_of_the_mlp_leaves_the_logits_alone(tmp_path):
    """GPT-2 with a rectifier as its activation: its MLP is a transcoder of this kind, neuron by neuron."""
    torch.manual_seed(0)
    host = gpt2()
    for parameter in host.parameters():
        parameter.data.normal_(std=0.4)
    block = host.transformer.h[LAYER]
    block.mlp.act = torch.nn.ReLU()
    host.eval()
    norm, up, down = block.ln_2, block.mlp.c_fc, block.mlp.c_proj
    width, bias = up.nf, torch.randn(32)
    gained = norm.weight.detach()[:, None] * up.weight.detach()
    tensors = {
        "W_enc": gained,
        "b_enc": up.bias.detach() + norm.bias.detach() @ up.weight.detach() + bias @ gained,
        "W_dec": down.weight.detach() - down.weight.detach().mean(-1, keepdim=True),
        "b_dec": bias,
        "b_dec_out": down.bias.detach() - down.bias.detach().mean(),
    }
    sae = load(tmp_path, tensors, width=width)
    ids = text_inputs()
    with torch.no_grad():
        clean = host(**ids).logits
        with splice(host, sae):
            spliced = host(**ids).logits
        sae.decoder.weight.mul_(1.1)
        with splice(host, sae):
            worse = host(**ids).logits
    torch.testing.assert_close(spliced, clean, rtol=0, atol=2e-5 * float(clean.abs().max()))
    assert (worse - clean).abs().max() > 100 * (spliced - clean).abs().max()


def test_the_centred_target_is_what_it_is_compared_with(tmp_path):
    t, x = state(), inputs(D)
    sae = load(tmp_path, t)
    with torch.no_grad():
        out = sae(x).reconstruction
        out = out - out.mean(-1, keepdim=True)
        sae.decoder.weight.sub_(sae.decoder.weight.mean(-1, keepdim=True))
        sae.decoder.bias.sub_(sae.decoder.bias.mean())
        close(sae(x).reconstruction, out)
        assert sae(x, target=out + 7.0).losses["reconstruction"] < 1e-9


def test_other_files_of_that_family_are_not_taken_for_transcoders(tmp_path):
    other = "final_sparse_autoencoder_gpt2-small_blocks.1.hook_resid_pre_40.pt"
    sparsity = name().replace(".pt", "_log_feature_sparsity.pt")
    for file in (other, sparsity):
        save_pt(tmp_path / file, {"state_dict": state()})
        with pytest.raises(CheckpointError, match="no checkpoint of a known format"):
            identify(open_files(str(tmp_path), file))


@pytest.mark.parametrize(
    ("tensors", "cfg", "width", "message"),
    [
        (state(), settings(is_transcoder=False), F, "is_transcoder=False"),
        (state(), settings(hook_point="blocks.2.ln2.hook_normalized"), F, "hook_point='blocks.2"),
        (state(), settings(out_hook_point="blocks.1.hook_resid_post"), F, "out_hook_point="),
        (state(), {}, 24576, "named for 24576 latents and has 40"),
        (state(b_dec_out=None), {}, F, "lacks the tensor 'b_dec_out'"),
        (state(b_dec=None), {}, F, "lacks the tensor 'b_dec'"),
        (state(b_dec=torch.zeros(D + 1)), {}, F, "a b_dec of shape"),
        (state(scaling_factor=torch.ones(F)), {}, F, "does not know: scaling_factor"),
    ],
)
def test_what_contradicts_is_refused(tmp_path, tensors, cfg, width, message):
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, tensors, cfg, width)


def test_another_host_or_content_is_refused(tmp_path):
    place = name().replace("gpt2-small", "pythia-410m")
    save_pt(tmp_path / place, {"cfg": {}, "state_dict": state()})
    with pytest.raises(CheckpointError, match="of the host 'pythia-410m'"):
        AutoTranscoder.from_pretrained(tmp_path, subfolder=place)
    save_pt(tmp_path / name(), state())
    with pytest.raises(CheckpointError, match="not a dictionary with a 'state_dict'"):
        AutoTranscoder.from_pretrained(tmp_path, subfolder=name())
