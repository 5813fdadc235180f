"""A repo with code loads where hf_sae is not installed, and no config points at code that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_sae.models import AutoSAE, JumpReLUConfig, JumpReLUSAE, StandardConfig, StandardSAE, TopKConfig, TopKSAE
from tests.local_hub import LocalHub
from tests.local_hub.client import Client


BARE = """
import json, sys
sys.modules["hf_sae"] = None  # as if it were not installed
import torch
from transformers import AutoModel
sae = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(sae).__module__.startswith("transformers_modules"), type(sae).__module__
if len(sys.argv) > 2:
    sae.save_pretrained(sys.argv[2])
print(json.dumps(sae(torch.linspace(-1, 1, 32).view(4, 8)).reconstruction.tolist()))
"""
X = torch.linspace(-1, 1, 32).view(4, 8)


def test_loads_without_the_package(tmp_path: Path):
    torch.manual_seed(0)
    saes = [
        TopKSAE(TopKConfig(d_in=8, d_sae=16, k=3)),
        StandardSAE(StandardConfig(d_in=8, d_sae=16)),
        JumpReLUSAE(JumpReLUConfig(d_in=8, d_sae=16, target_l0=4)),
    ]
    with LocalHub() as hub:
        client = Client(hub, tmp_path / "home")
        for sae in saes:
            name = f"sae-{sae.config.model_type}"
            sae.eval().save_pretrained(tmp_path / name, include_code=True)
            assert type(sae)._auto_class is None, "the next save copies no code"
            hub.add(f"tester/{name}", tmp_path / name)
            again = tmp_path / f"{name}-again"
            assert client.value(BARE, f"tester/{name}", str(again)) == sae(X).reconstruction.tolist()
            assert client.value(BARE, str(again)) == sae(X).reconstruction.tolist(), "saved again, code and all"


def test_a_save_without_code_leaves_no_auto_map(tmp_path: Path):
    sae = TopKSAE(TopKConfig(d_in=8, d_sae=16, k=3)).eval()
    sae.save_pretrained(tmp_path / "code", include_code=True)
    assert "auto_map" in json.loads((tmp_path / "code" / "config.json").read_text())
    loaded = AutoSAE.from_pretrained(tmp_path / "code")
    assert type(loaded) is TopKSAE, "the installed class wins"
    loaded.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))
