"""A published checkpoint over the wire: one listing, the needed file, its commit; then from the cache without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conversion.layouts import weights
from tests.local_hub import LocalHub
from tests.local_hub.client import Client, Done


REPO = "google/gemma-scope-2b-pt-res"
CODE = """
import json, sys
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(*json.loads(sys.argv[1]), **json.loads(sys.argv[2]))
print(json.dumps({"conversion": sae.config.provenance["conversion"], "b": float(sae.b_dec[0]), "hook": sae.config.hook_in}))
"""


def load(client: Client, *names: str, offline: str = "0", **options: str) -> Done:
    return client.python(CODE, json.dumps(names), json.dumps(options), HF_HUB_OFFLINE=offline)


def write(folder: Path, place: str, seed: int) -> None:
    (folder / place).mkdir(parents=True)
    arrays = {key: value.numpy() for key, value in weights(8, 1024, seed=seed).items()}
    np.savez(folder / place / "params.npz", **arrays)


@pytest.mark.parametrize("lfs", [False, True])
def test_loaded_pinned_and_offline(tmp_path: Path, lfs: bool):
    place = "layer_20/width_1k/average_l0_71"
    for number, l0 in enumerate((22, 71, 294)):
        write(tmp_path / "repo", f"layer_20/width_1k/average_l0_{l0}", number)
    hub = LocalHub(lfs)
    with Client(hub, tmp_path / "home") as client:
        loads_pinned_and_offline(client, hub, tmp_path / "repo", place)


def loads_pinned_and_offline(client: Client, hub: LocalHub, repo: Path, place: str) -> None:
    with hub:
        first = hub.add(REPO, repo)
        done = load(client, REPO, subfolder=place)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["conversion"]["commit"] == first
        assert found["conversion"]["source"] == REPO
        assert found["hook"] == "resid_post.20"
        assert set(hub.downloads()) <= {f"{place}/params.npz"}, "nothing else was fetched"
        (repo / place / "params.npz").unlink()
        (repo / place).rmdir()
        write(repo, place, 9)
        hub.add(REPO, repo)
        pinned = json.loads(load(client, REPO, subfolder=place, revision=first).stdout)
        newest = json.loads(load(client, REPO, subfolder=place).stdout)
        assert pinned["b"] == found["b"] != newest["b"]
        canonical = load(client, "saelens:gemma-scope-2b-pt-res-canonical/layer_20/width_1k/canonical")
        assert json.loads(canonical.stdout)["conversion"]["place"] == place, canonical.stderr
        missing = load(client, REPO, subfolder="layer_20")
        assert "average_l0_22" in missing.stderr, "what the repo holds is listed"
    offline = load(client, REPO, subfolder=place, revision=first, offline="1")
    assert json.loads(offline.stdout)["b"] == found["b"], offline.stderr
    gone = load(client, REPO, subfolder=place)
    assert json.loads(gone.stdout)["b"] == newest["b"], gone.stderr
