"""A repo with code loads where hf_sae is not installed, and no config points at code that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_sae.models import (
    AutoSAE,
    FeatureChoiceConfig,
    FeatureChoiceSAE,
    JumpReLUConfig,
    JumpReLUSAE,
    StandardConfig,
    StandardSAE,
    TopKConfig,
    TopKSAE,
)
from tests.local_hub import LocalHub
from tests.local_hub.client import Client, last_line


BARE = """
import json, sys
sys.modules["hf_sae"] = None  # as if it were not installed
try:
    import hf_sae.models
    sys.exit("hf_sae can be imported")
except ImportError:
    pass
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
        FeatureChoiceSAE(FeatureChoiceConfig(d_in=8, d_sae=16, k=3)),
    ]
    saes[-1].estimate_threshold(X)
    with LocalHub() as hub, Client(hub, tmp_path / "home") as client:
        for sae in saes:
            name = f"sae-{sae.config.model_type}"
            sae.eval().save_pretrained(tmp_path / name, include_code=True)
            assert type(sae)._auto_class is None, "the next save copies no code"
            hub.add(f"tester/{name}", tmp_path / name)
            again = tmp_path / f"{name}-again"
            assert (
                last_line(client.python(BARE, f"tester/{name}", str(again), bare=True))
                == sae(X).reconstruction.tolist()
            )
            assert last_line(client.python(BARE, str(again), bare=True)) == sae(X).reconstruction.tolist(), (
                "saved again, code and all"
            )


def test_a_save_without_code_leaves_no_auto_map(tmp_path: Path):
    sae = TopKSAE(TopKConfig(d_in=8, d_sae=16, k=3)).eval()
    sae.save_pretrained(tmp_path / "code", include_code=True)
    assert "auto_map" in json.loads((tmp_path / "code" / "config.json").read_text())
    loaded = AutoSAE.from_pretrained(tmp_path / "code")
    assert type(loaded) is TopKSAE, "the installed class wins"
    loaded.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))


PUSHED = """
import json, sys
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1])
sae.push_to_hub(sys.argv[2], include_code=True, **json.loads(sys.argv[3]))
"""
BARE_INSIDE = BARE.replace("trust_remote_code=True", 'trust_remote_code=True, subfolder="deep/er"')


def test_a_push_with_code_loads_without_the_package_from_the_root_and_from_a_folder(tmp_path: Path):
    torch.manual_seed(0)
    config = TopKConfig(d_in=8, d_sae=16, k=3, hook_in="mlp_in.0", hook_out="mlp_out.0", skip=True)
    sae = TopKSAE(config).eval()
    with torch.no_grad():
        sae.skip.weight.normal_()
    sae.save_pretrained(tmp_path / "sae")
    with LocalHub() as hub, Client(hub, tmp_path / "home") as client:
        for repo, options in (("tester/root", {}), ("tester/inside", {"subfolder": "deep/er"})):
            assert client.python(PUSHED, str(tmp_path / "sae"), repo, json.dumps(options)).returncode == 0
        assert last_line(client.python(BARE, "tester/root", bare=True)) == sae(X).reconstruction.tolist()
        assert last_line(client.python(BARE_INSIDE, "tester/inside", bare=True)) == sae(X).reconstruction.tolist()
        files = hub.files("tester/inside")
        assert "modeling_topk.py" in files, "transformers looks for code at the root"
        assert "deep/er/modeling_topk.py" not in files
