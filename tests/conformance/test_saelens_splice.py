"""A GPT-2 of transformers with ours in it gives the logits of SAELens' HookedSAETransformer with theirs, weights being equal.

The host is tiny and random; TransformerLens' own conversion makes its copy, processed or not. So the meaning of places and
of what processing changes (centred residual streams, heads without value biases) is compared, not only weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


pytest.importorskip("sae_lens")

from sae_lens import SAE as PeerSAE  # noqa: N811
from sae_lens import HookedSAETransformer
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

from hf_sae import AutoSAE, read, splice
from hf_sae.conversion.hook_z import move_value_bias


D, D_MLP, F, HEADS, VOCAB = 12, 48, 40, 3, 31
NONE = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def host() -> Any:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=HEADS, n_positions=16)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4)
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.requires_grad_(False)


def lens(host: Any, **processing: bool) -> HookedSAETransformer:
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=D, n_ctx=16, d_head=D // HEADS, n_heads=HEADS, d_mlp=D_MLP, d_vocab=VOCAB,
        act_fn="gelu_new", normalization_type="LN", eps=1e-5, device="cpu", original_architecture="GPT2LMHeadModel",
    )  # fmt: skip
    model = HookedSAETransformer(cfg).eval()
    model.load_and_process_state_dict(convert_gpt2_weights(host, cfg), **{**NONE, **processing})
    return model.requires_grad_(False)


def checkpoint(folder: Path, architecture: str, hook: str, out: str | None = None, **meta: Any) -> PeerSAE:
    """Written in SAELens' layout and loaded by SAELens."""
    g, transcoder = torch.Generator().manual_seed(4), out is not None
    w = {"W_enc": torch.randn(D, F, generator=g) / 2, "W_dec": torch.randn(F, D, generator=g) / 4}
    w |= {"b_enc": torch.randn(F, generator=g) / 4, "b_dec": torch.randn(D, generator=g) / 4}
    w |= {"threshold": torch.rand(F, generator=g)} if "jump" in architecture else {}
    meta = {"sae_lens_version": "6.0.0", "model_name": "gpt2", "hook_name": hook, **meta}
    meta |= {"hook_name_out": out} if transcoder else {}
    cfg = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    cfg |= {"k": 6} if architecture == "topk" else {}
    cfg |= {"apply_b_dec_to_input": not transcoder, "metadata": meta} | ({"d_out": D} if transcoder else {})
    cfg["reshape_activations"] = "hook_z" if hook.endswith("_z") else "none"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(w, folder / "sae_weights.safetensors")
    return PeerSAE.load_from_disk(folder)


def logits(host: Any, sae: Any) -> torch.Tensor:
    with splice(host, sae):
        return host(IDS).logits


def equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


def test_the_hosts_are_the_same_model(host: Any):
    model = lens(host)
    equal(model(IDS), host(IDS).logits)
    _, cache = model.run_with_cache(IDS)
    places = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
    ours = read(host, [*(f"{p}.1" for p in places), "attn_z.1"], input_ids=IDS)
    for p in places:
        equal(ours[f"{p}.1"], cache[f"blocks.1.hook_{p}"])
    equal(ours["attn_z.1"], cache["blocks.1.attn.hook_z"].flatten(-2))


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize(
    "hook", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "attn.hook_z"]
)
def test_saes(host: Any, tmp_path: Path, architecture: str, hook: str):
    theirs = checkpoint(tmp_path, architecture, f"blocks.1.{hook}")
    ours = logits(host, AutoSAE.from_pretrained(tmp_path))
    equal(ours, lens(host).run_with_saes(IDS, saes=[theirs]))
    assert (ours - host(IDS).logits).abs().max() > 0.1  # it does something


@pytest.mark.parametrize("hook", ["mlp.hook_in", "ln2.hook_normalized"])
@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_transcoder"])
def test_transcoders(host: Any, tmp_path: Path, architecture: str, hook: str):
    theirs = checkpoint(tmp_path, architecture, f"blocks.1.{hook}", "blocks.1.hook_mlp_out")
    equal(logits(host, AutoSAE.from_pretrained(tmp_path)), lens(host).run_with_saes(IDS, saes=[theirs]))


def test_a_folded_gain(host: Any, tmp_path: Path):
    meta = {"model_from_pretrained_kwargs": {"fold_ln": True}}
    theirs = checkpoint(tmp_path, "transcoder", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", **meta)
    equal(
        logits(host, AutoSAE.from_pretrained(tmp_path)),
        lens(host, fold_ln=True).run_with_saes(IDS, saes=[theirs]),
    )


def shift(x: torch.Tensor) -> torch.Tensor:
    """Log probabilities: the final norm's mean does not reach them."""
    return x.log_softmax(-1)


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"])
def test_a_centred_host(host: Any, tmp_path: Path, hook: str):
    meta = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    theirs = checkpoint(tmp_path, "standard", f"blocks.1.{hook}", **meta)
    model, sae = lens(host, center_writing_weights=True), AutoSAE.from_pretrained(tmp_path)
    _, cache = model.run_with_cache(IDS)
    place = sae.config.hook_in
    equal(sae.encode(read(host, place, input_ids=IDS)[place]), theirs.encode(cache[f"blocks.1.{hook}"]))
    equal(shift(logits(host, sae)), shift(model.run_with_saes(IDS, saes=[theirs])))


def test_a_centred_hosts_transcoder(host: Any, tmp_path: Path):
    meta = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    theirs = checkpoint(tmp_path, "transcoder", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", **meta)
    model, sae = lens(host, center_writing_weights=True), AutoSAE.from_pretrained(tmp_path)
    _, cache = model.run_with_cache(IDS)
    acts = read(host, ["resid_mid.1", "mlp_out.1"], input_ids=IDS)
    equal(sae.encode(acts["resid_mid.1"]), theirs.encode(cache["blocks.1.hook_resid_mid"]))
    equal(sae.comparable(acts["mlp_out.1"]), cache["blocks.1.hook_mlp_out"])


def test_heads_of_a_processed_host(host: Any, tmp_path: Path):
    """What the trainer of the autoencoders of GPT-2's heads saw: `HookedTransformer.from_pretrained` with its defaults."""
    theirs = checkpoint(tmp_path / "peer", "standard", "blocks.1.attn.hook_z")
    torch.save(dict(theirs.state_dict()), tmp_path / "z.pt")
    (tmp_path / "z_cfg.json").write_text(json.dumps({"act_name": "blocks.1.attn.hook_z", "model_name": "gpt2-small"}))
    sae = move_value_bias(AutoSAE.from_pretrained(tmp_path, subfolder="z"), host)
    model = lens(host, fold_ln=True, center_writing_weights=True, center_unembed=True, fold_value_biases=True)
    _, cache = model.run_with_cache(IDS)
    x = read(host, "attn_z.1", input_ids=IDS)["attn_z.1"]
    assert (cache["blocks.1.attn.hook_z"].flatten(-2) - x).abs().max() > 0.1
    equal(sae.encode(x), theirs.encode(cache["blocks.1.attn.hook_z"]))
    equal(shift(logits(host, sae)), shift(model.run_with_saes(IDS, saes=[theirs])))
