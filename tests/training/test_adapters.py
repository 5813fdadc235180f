"""An adapter in training: it alone changes, is saved, and resumes with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from hf_sae.errors import ConfigError
from hf_sae.models import SAE, AutoSAE, JumpReLUConfig, JumpReLUSAE, StandardConfig, StandardSAE, total_variance
from hf_sae.training import SAETrainer
from tests.training.planted import planted, topk, trainer


ARCHITECTURES = ("topk", "jumprelu", "standard")
every_architecture = pytest.mark.parametrize("kind", ARCHITECTURES)


def base_in(folder: Path, kind: str) -> SAE:
    """A saved base with off-unit decoder rows and an input scale of its own, which a refit would change."""
    common = {"d_in": 16, "d_sae": 48, "hook_in": "resid_post.0", "input_norm": "scalar", "input_scale": 0.7}
    torch.manual_seed(0)
    if kind == "topk":
        sae: SAE = topk(input_norm="scalar", input_scale=0.7)
    elif kind == "jumprelu":
        sae = JumpReLUSAE(JumpReLUConfig(**common, target_l0=2))
    else:
        sae = StandardSAE(StandardConfig(**common))
    with torch.no_grad():
        sae.decoder.weight.mul_(1.01)
        sae.decoder.bias.normal_(std=0.1)
    sae.save_pretrained(folder)
    return AutoSAE.from_pretrained(folder)


def adapter_on(folder: Path, kind: str) -> PeftModel:
    base = base_in(folder, kind)
    torch.manual_seed(1)
    return get_peft_model(base, LoraConfig(target_modules=["encoder"], r=4))


def frozen(sae: SAE) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in sae.named_parameters() if "lora_" not in name}


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@every_architecture
def test_only_the_adapter_is_trained_and_it_lowers_the_loss(kind: str, tmp_path: Path) -> None:
    model, (x, _) = adapter_on(tmp_path / "base", kind), planted(256 * 120)
    sae = model.get_base_model()
    before = frozen(sae)
    run = trainer(model, tmp_path / "run", x)
    run.training_step(x[:256])
    first = run.trainees[0].fvu
    run.step = run.tokens = 0
    run.train()
    for name, value in frozen(sae).items():
        assert torch.equal(value, before[name]), name
    assert sae.config.input_scale == 0.7
    assert {p.shape for group in run.trainees[0].optimizer.param_groups for p in group["params"]} == {(4, 16), (48, 4)}
    assert len(run.trainees[0].optimizer.state) == 2
    assert run.trainees[0].state.normaliser == pytest.approx(total_variance(x[:256]))
    assert run.trainees[0].fvu < 0.97 * first
    assert not (tmp_path / "run" / "model.safetensors").exists()
    loaded = AutoSAE.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded(x[:8]).reconstruction, sae.eval()(x[:8]).reconstruction)
    assert loaded.merge_and_unload()(x[:8]).reconstruction.sub(sae(x[:8]).reconstruction).abs().max() < 1e-5


@every_architecture
@pytest.mark.parametrize("native", [False, True])
def test_resumed_it_ends_with_the_same_bits(kind: str, native: bool, tmp_path: Path) -> None:
    x, _ = planted(256 * 12)
    adapter_on(tmp_path / "base", kind).get_base_model().save_pretrained(tmp_path / "start")

    def model() -> SAE | PeftModel:
        if native:
            return AutoSAE.from_pretrained(tmp_path / "start", is_trainable=True)
        base = AutoSAE.from_pretrained(tmp_path / "base")
        return PeftModel.from_pretrained(base, tmp_path / "start", is_trainable=True)

    trainer(model(), tmp_path / "whole", x).train()
    stopped = trainer(model(), tmp_path / "parts", x, save_steps=5)
    for batch in x[: 256 * 5].split(256):
        stopped.training_step(batch)
    folder = stopped.save_checkpoint()
    assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (folder / "model.safetensors").exists()
    with torch.no_grad():
        other = model()
        for name, p in other.named_parameters():
            if "lora_" in name:
                p.normal_()
    trainer(other, tmp_path / "parts", x).train(resume_from_checkpoint=folder)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_an_adapter_beside_a_plain_sae(tmp_path: Path) -> None:
    x, _ = planted(256 * 4)
    trainer({"lora": adapter_on(tmp_path / "base", "topk"), "plain": topk()}, tmp_path / "run", x).train()
    assert (tmp_path / "run" / "lora" / "adapter_model.safetensors").exists()
    assert (tmp_path / "run" / "plain" / "model.safetensors").exists()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    adapter_on(tmp_path / "base", "topk").get_base_model().save_pretrained(tmp_path / "start")
    with pytest.raises(ConfigError, match="is_trainable=True"):
        trainer(AutoSAE.from_pretrained(tmp_path / "start"), tmp_path / "run")
    with pytest.raises(ConfigError, match="Linear: give an SAE"):
        SAETrainer(torch.nn.Linear(2, 2), trainer(topk(), tmp_path / "run").args)
