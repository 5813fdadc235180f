"""An architecture that is not in the package, as a user writes one: `examples/own_architecture.py`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hf_sae import AutoSAE, SAETrainer, SAETrainingArguments
from hf_sae.models import SAE, ConfigError, SAEConfig, registered, strict_config
from tests.models.battery import forget


ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_architecture.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_architecture", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_architecture"] = module  # save_pretrained looks up where a class comes from
    spec.loader.exec_module(module)
    yield module
    forget(module.InhibitionConfig)


def test_it_is_one_short_file() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_it_runs_from_anywhere_and_its_model_is_loaded_where_it_is_imported(
    example: ModuleType, tmp_path: Path
) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "own_architecture.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "inhibition" / "config.json").read_text())["model_type"] == "inhibition"
    loaded = AutoSAE.from_pretrained(tmp_path / "inhibition")
    assert type(loaded) is example.InhibitionSAE
    assert loaded.config.k == 8
    forget(example.InhibitionConfig)  # as where it was not imported
    with pytest.raises(ValueError, match=r"inhibition.* Known model types: hf_sae_abs_topk"):
        AutoSAE.from_pretrained(tmp_path / "inhibition")
    AutoSAE.register(example.InhibitionConfig, example.InhibitionSAE)


def test_its_code_is_continuous_where_topk_jumps(example: ModuleType) -> None:
    torch.manual_seed(0)
    sae = example.InhibitionSAE(example.InhibitionConfig(d_in=4, d_sae=16, k=3)).double().eval()
    start, end = torch.randn(2, 4, dtype=torch.double)
    path = start + torch.linspace(0, 1, 20_001, dtype=torch.double).unsqueeze(1) * (end - start)
    with torch.no_grad():
        z, u = sae.encode(path), sae.pre_activations(path)
    assert ((z > 0).sum(-1) <= 3).all()
    assert ((z[1:] > 0) != (z[:-1] > 0)).any(0).sum() >= 4, "the code changes on the way"
    step = 2 * (u[1:] - u[:-1]).abs().max()  # of two pre-activations, the winner's and the loser's
    assert (z[1:] - z[:-1]).abs().max() <= step
    order = u.sort(-1, descending=True).values
    expected = (order[:, :3] - order[:, 3:4].clamp_min(0)).clamp_min(0)
    torch.testing.assert_close(z.topk(3).values, expected)


def test_it_reconstructs_planted_atoms_after_training(example: ModuleType, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=-1)

    def batch() -> torch.Tensor:
        chosen = torch.rand(512, 24, generator=generator).topk(2).indices
        return ((0.5 + torch.rand(512, 2, 1, generator=generator)) * atoms[chosen]).sum(1)

    sae = example.InhibitionSAE(example.InhibitionConfig(d_in=16, d_sae=32, k=4))
    args = SAETrainingArguments(
        output_dir=str(tmp_path), total_tokens=512 * 200, tokens_per_batch=512, learning_rate=5e-3, disable_tqdm=True
    )
    SAETrainer(sae, args, [batch() for _ in range(200)]).train()
    loaded, x = AutoSAE.from_pretrained(tmp_path), batch()
    assert type(loaded) is example.InhibitionSAE
    error = (x - loaded(x).reconstruction).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.2
    assert loaded.encode_sparse(x).counts().max() <= 4


def test_what_is_wrong_with_one_is_said(example: ModuleType) -> None:
    with pytest.raises(ConfigError, match="k=16 must be at least 1 and below d_sae=16"):
        example.InhibitionConfig(d_in=4, d_sae=16, k=16)

    @strict_config
    class OtherConfig(SAEConfig):
        model_type = "unnamed"

    class UnnamedSAE(SAE):
        pass

    with pytest.raises(ConfigError, match=r"UnnamedSAE does not say .* write `config: OtherConfig`"):
        AutoSAE.register(OtherConfig, UnnamedSAE)
    assert "unnamed" not in registered()


def architecture(name: str | None, decorate: Any = strict_config, initialise: bool = True) -> tuple[Any, Any]:
    """A config and a model as somebody new to the library might write them."""
    body: dict[str, Any] = {"__module__": __name__, "__annotations__": {"floor": float}, "floor": 0.1}
    config_class = decorate(type("NewConfig", (SAEConfig,), body | ({"model_type": name} if name else {})))

    def start(self: SAE, config: Any) -> None:
        SAE.__init__(self, config)
        if initialise:
            self.post_init()

    named = {"__module__": __name__, "__annotations__": {"config": config_class}, "__init__": start}
    return config_class, type("NewSAE", (SAE,), named)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (architecture("unchecked", decorate=lambda cls: cls), "NewConfig is not checked: put @strict_config"),
        (architecture(None), "NewConfig has no model_type of its own"),
        (architecture("llama"), "'llama' is one of transformers' own"),
    ],
)
def test_a_config_that_would_go_wrong_later_is_refused(parts: tuple[Any, Any], said: str) -> None:
    before = dict(registered())
    with pytest.raises(ConfigError, match=said):
        AutoSAE.register(*parts)
    assert registered() == before
    assert AutoConfig.for_model("llama").hidden_act == "silu"


@pytest.mark.parametrize("forgotten", ["post_init", "persistent"])
def test_what_training_would_lose_is_said_before_it_starts(tmp_path: Path, forgotten: str) -> None:
    config_class, model_class = architecture("forgetful", initialise=forgotten != "post_init")
    sae = model_class(config_class(d_in=8, d_sae=16))
    if forgotten == "persistent":
        sae.register_buffer("shares", torch.ones(16), persistent=False)
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=64, tokens_per_batch=64, disable_tqdm=True)
    with pytest.raises(ConfigError, match=rf"NewSAE .*{forgotten}"):
        SAETrainer(sae, args, [torch.randn(64, 8)])
