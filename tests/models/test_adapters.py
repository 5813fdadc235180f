"""Adapters on an SAE: what is written, what comes back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from hf_sae.models import SAE, AutoSAE, AutoTranscoder, CheckpointError, SparseCode, TopKSAE, TrainingState, adapters
from tests.local_hub import LocalHub
from tests.local_hub.client import Client
from tests.models.battery import CASES, Case, encoder_layers


EVERY = pytest.mark.parametrize("case", [case for case in CASES if encoder_layers(case.build())], ids=str)
TOPK = next(case for case in CASES if str(case) == "topk-sae")


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"target_modules": ["encoder"], "r": 2, "init_lora_weights": False} | changes)


def saved_base(case: Case, folder: Path) -> SAE:
    case.build().save_pretrained(folder)
    return AutoSAE.from_pretrained(folder)


def adapted(case: Case, tmp_path: Path, **changes) -> SAE:
    """A base in `tmp_path/base` with a LoRA of random weights, which is saved in `tmp_path/adapter`."""
    sae = saved_base(case, tmp_path / "base")
    torch.manual_seed(3)
    get_peft_model(sae, lora(**{"target_modules": encoder_layers(sae)} | changes))
    sae.eval()
    sae.save_pretrained(tmp_path / "adapter")
    return sae


def by_hand(base: SAE, folder: Path) -> dict[str, Tensor]:
    """`W + (alpha / r) B A` of each of the encoder's layers from the files (alpha is 8 in PEFT)."""
    tensors, merged = load_file(folder / "adapter_model.safetensors"), {}
    for layer in encoder_layers(base):
        a, b = (tensors.pop(f"base_model.model.{layer}.lora_{x}.weight") for x in "AB")
        merged[layer] = base.get_submodule(layer).weight.detach() + 8 / a.shape[0] * b @ a
    assert not tensors
    return merged


@EVERY
def test_a_folder_holds_the_adapter_alone_and_comes_back_on_its_base(case: Case, tmp_path: Path) -> None:
    sae, (x, _) = adapted(case, tmp_path), case.batch()
    files = sorted(p.name for p in (tmp_path / "adapter").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    base = AutoSAE.from_pretrained(tmp_path / "base")
    loaded = AutoSAE.from_pretrained(tmp_path / "adapter")
    assert type(loaded) is type(base)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    expected = by_hand(base, tmp_path / "adapter")
    if "encoder" in expected:
        torch.testing.assert_close(loaded.W_enc.T, expected["encoder"])
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)
    assert not torch.equal(loaded(x).reconstruction, base(x).reconstruction)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    code = loaded.encode_sparse(x)
    assert isinstance(code, SparseCode)
    assert torch.equal(loaded.decode(code), sae.decode(sae.encode_sparse(x)))
    # the plain SAE with the merged matrices, written down
    with torch.no_grad():
        for layer, weight in expected.items():
            base.get_submodule(layer).weight.copy_(weight)
    torch.testing.assert_close(loaded.encode(x), base.encode(x), atol=1e-5, rtol=1e-5)


@EVERY
def test_merged_it_is_a_plain_sae_with_equal_outputs(case: Case, tmp_path: Path) -> None:
    adapted(case, tmp_path)
    loaded, (x, _) = AutoSAE.from_pretrained(tmp_path / "adapter"), case.batch()
    before, weights = (
        loaded(x).reconstruction,
        by_hand(AutoSAE.from_pretrained(tmp_path / "base"), tmp_path / "adapter"),
    )
    merged = loaded.merge_and_unload()
    assert encoder_layers(merged) == list(weights), "plain layers again"
    torch.testing.assert_close(merged(x).reconstruction, before, atol=1e-6, rtol=1e-5)
    for layer, weight in weights.items():
        torch.testing.assert_close(merged.get_submodule(layer).weight.detach(), weight)
    assert all(p.requires_grad for p in merged.parameters())
    merged.save_pretrained(tmp_path / "merged")
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(AutoSAE.from_pretrained(tmp_path / "merged")(x).reconstruction, merged(x).reconstruction)
    again = LoraConfig(target_modules=list(weights))
    merged.add_adapter(again)
    assert not again.base_model_name_or_path, "an adapter on the merged SAE must not name the unmerged one"


def test_other_ways_in_give_the_same_sae(tmp_path: Path) -> None:
    sae, (x, _) = adapted(TOPK, tmp_path), TOPK.batch()
    expected, folder = sae(x).reconstruction, tmp_path / "adapter"
    peft_folder = tmp_path / "by_peft"
    base = AutoSAE.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(base, folder).save_pretrained(peft_folder)
    native = AutoSAE.from_pretrained(tmp_path / "base")
    native.load_adapter(str(folder))
    native.save_pretrained(tmp_path / "native")
    ways = [TopKSAE.from_pretrained(folder), AutoModel.from_pretrained(folder), AutoSAE.from_pretrained(peft_folder)]
    ways += [
        native,
        AutoSAE.from_pretrained(tmp_path / "native"),
        AutoSAE.from_pretrained(tmp_path, subfolder="adapter"),
    ]
    for loaded in ways:
        assert torch.equal(loaded(x).reconstruction, expected)
    loaded, info = AutoSAE.from_pretrained(folder, output_loading_info=True)
    assert torch.equal(loaded(x).reconstruction, expected)
    assert not any(info.values())


def test_a_trainable_one_trains_its_adapter_only(tmp_path: Path) -> None:
    adapted(TOPK, tmp_path)
    loaded = AutoSAE.from_pretrained(tmp_path / "adapter", is_trainable=True)
    wanted = ["encoder.lora_A.default.weight", "encoder.lora_B.default.weight"]
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == wanted


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_bias": True}, {"bias": "lora_only"}], ids=str)
def test_merged_views_hold_for_other_kinds_of_lora(tmp_path: Path, changes: dict) -> None:
    sae, (x, _) = adapted(TOPK, tmp_path, **changes), TOPK.batch()
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sae.pre_activations(x), pre, atol=1e-5, rtol=1e-5)
    loaded = AutoSAE.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged.pre_activations(x), pre, atol=1e-5, rtol=1e-5)


def test_merged_views_of_an_adapter_that_is_merged_or_switched_off(tmp_path: Path) -> None:
    sae = adapted(TOPK, tmp_path)
    base, on = AutoSAE.from_pretrained(tmp_path / "base").W_enc, sae.W_enc
    sae.encoder.merge()
    torch.testing.assert_close(sae.W_enc, on)
    sae.encoder.unmerge()
    sae.encoder.enable_adapters(False)
    torch.testing.assert_close(sae.W_enc, base)


def test_a_half_precision_base_keeps_a_float32_adapter(tmp_path: Path) -> None:
    TOPK.build().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    sae, (x, _) = AutoSAE.from_pretrained(tmp_path / "base"), TOPK.batch()
    get_peft_model(sae, lora())
    sae.eval().save_pretrained(tmp_path / "adapter")
    loaded = AutoSAE.from_pretrained(tmp_path / "adapter")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.encoder.lora_A["default"].weight, sae.encoder.lora_A["default"].weight)
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


def test_the_statistics_are_the_adapters_own(tmp_path: Path) -> None:
    base, stats = TOPK.build(), {"density": torch.rand(32), "maximum": torch.rand(32)}
    base.feature_stats = stats
    base.save_pretrained(tmp_path / "base")
    sae = AutoSAE.from_pretrained(tmp_path / "base")
    sae.add_adapter(lora())
    sae.feature_stats = None
    sae.save_pretrained(tmp_path / "adapter")
    loaded = AutoSAE.from_pretrained(tmp_path / "adapter")
    assert loaded.feature_stats is None
    loaded.feature_stats = {key: value + 1 for key, value in stats.items()}
    loaded.save_pretrained(tmp_path / "adapter")
    again = AutoSAE.from_pretrained(tmp_path / "adapter").feature_stats
    assert torch.equal(again["density"], stats["density"] + 1)


def test_a_missing_or_unnamed_base_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted(TOPK, tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"is an adapter on .*base.*base_model_name_or_path"):
        AutoSAE.from_pretrained(tmp_path / "adapter")
    unnamed = TOPK.build()
    unnamed.add_adapter(lora())
    unnamed.save_pretrained(tmp_path / "unnamed")
    assert "base has no name" in caplog.text
    with pytest.raises(CheckpointError, match=r"names no base.*PeftModel"):
        AutoSAE.from_pretrained(tmp_path / "unnamed")


def test_an_sae_is_no_transcoder_because_of_an_adapter(tmp_path: Path) -> None:
    adapted(TOPK, tmp_path)
    with pytest.raises(CheckpointError, match="AutoSAE"):
        AutoTranscoder.from_pretrained(tmp_path / "adapter")


B = "base_model.model.encoder.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(B), "lora_B.weight is missing"),
        (lambda t: t.update({B: t[B][:-1].contiguous()}), r"lora_B.weight is \[31, 2\], wanted \[32, 2\]"),
        (lambda t: t.update({B + "x": t[B].clone()}), "lora_B.weightx is not the SAE's"),
        (lambda t: t[B].fill_(float("nan")), "lora_B.weight has NaN"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path: Path, change, message: str) -> None:
    adapted(TOPK, tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    for load in (AutoSAE.from_pretrained, TopKSAE.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "adapter")


@pytest.mark.parametrize(("name", "content"), [("adapter_model.safetensors", None), ("adapter_model.safetensors", b"x"), ("adapter_config.json", b"{"), ("adapter_config.json", b"{}")])  # fmt: skip
def test_missing_and_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    adapted(TOPK, tmp_path)
    file = tmp_path / "adapter" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        AutoSAE.from_pretrained(tmp_path / "adapter")


def test_two_adapters_cannot_be_saved_as_one(tmp_path: Path) -> None:
    sae = adapted(TOPK, tmp_path)
    sae.add_adapter(lora(), "second")
    with pytest.raises(CheckpointError, match="default, second"):
        sae.save_pretrained(tmp_path / "two")


@pytest.mark.parametrize(
    ("recorded", "place"),
    [
        ("user/repo", ("user/repo", None)),
        ("user/repo/layer_8/width_16k", ("user/repo", "layer_8/width_16k")),
        ("saelens:release/id/more", ("saelens:release/id/more", None)),
        ("/srv/bases/layer_8", ("/srv/bases/layer_8", None)),
        ("../bases/layer_8", ("../bases/layer_8", None)),
    ],
)
def test_where_a_recorded_base_lies(recorded: str, place: tuple[str, str | None]) -> None:
    assert adapters._place_of(recorded) == place


ON_A_HUB = """
import sys, torch
from peft import LoraConfig, get_peft_model
from hf_sae.models import AutoSAE
first, folder = sys.argv[1:]
base = AutoSAE.from_pretrained("tester/bases", subfolder="layer_8", revision=first)
torch.manual_seed(0)
get_peft_model(base, LoraConfig(target_modules=["encoder"], r=2, init_lora_weights=False))
base.eval().save_pretrained(folder)
x = torch.randn(5, 12)
torch.testing.assert_close(AutoSAE.from_pretrained(folder)(x).reconstruction, base(x).reconstruction)
newest = AutoSAE.from_pretrained("tester/bases", subfolder="layer_8")
assert not torch.equal(newest.b_dec, base.b_dec)
"""
FROM_A_HUB = """
import sys, torch
from hf_sae.models import AutoSAE
x = torch.randn(5, 12)
here, there = AutoSAE.from_pretrained(sys.argv[1]), AutoSAE.from_pretrained("tester/adapter")
assert torch.equal(here(x).reconstruction, there(x).reconstruction)
"""


def test_a_base_in_a_subfolder_of_a_repo_at_a_revision_is_found_again(tmp_path: Path) -> None:
    with LocalHub() as hub, Client(hub, tmp_path / "home") as client:
        commits = []
        for seed in (0, 1):
            TOPK.build(seed=seed).save_pretrained(tmp_path / "repo" / "layer_8")
            commits.append(hub.add("tester/bases", tmp_path / "repo"))
        done = client.python(ON_A_HUB, commits[0], str(tmp_path / "adapter"))
        assert done.returncode == 0, done.stderr
        hub.add("tester/adapter", tmp_path / "adapter")
        done = client.python(FROM_A_HUB, str(tmp_path / "adapter"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "tester/bases/layer_8"
    assert written["revision"] == commits[0]


def test_aux_k_reaches_the_adapter_of_dead_latents(tmp_path: Path) -> None:
    sae, (x, _) = adapted(TOPK, tmp_path), TOPK.batch()
    peft_rows = sae.encoder.lora_B["default"].weight
    plain = AutoSAE.from_pretrained(tmp_path / "adapter").merge_and_unload()
    dead = torch.zeros(32, dtype=torch.long)
    losses = []
    for model in (sae, plain):
        state = TrainingState(normaliser=7.0, dead_after_tokens=10, tokens_since_fired=dead.clone())
        state.tokens_since_fired[:5] = 99
        losses.append(model(x, state=state).losses["auxk"])
    torch.testing.assert_close(losses[0], losses[1])
    (got,) = torch.autograd.grad(losses[0], [peft_rows])
    (wanted,) = torch.autograd.grad(losses[1], [plain.encoder.weight])
    # d loss / d B = (alpha / r) (d loss / d W) A^T
    torch.testing.assert_close(got, 8 / 2 * wanted @ sae.encoder.lora_A["default"].weight.T, atol=1e-6, rtol=1e-4)
    assert got[:5].abs().sum() > 0
