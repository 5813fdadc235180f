"""One load, one commit: recorded, pinned, and found again without a network after another autoencoder moved the branch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae.errors import CheckpointError
from hf_sae.models import AutoSAE, TopKConfig, TopKSAE
from hf_sae.models.pinning import split_name
from tests.local_hub.client import Client, Done


CODE = """
import json, sys
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
print(json.dumps({"commit": sae.config._commit_hash, "b": float(sae.b_dec[0])}))
"""


def load(client: Client, name: str, offline: bool = False, **options: Any) -> Done:
    return client.python(CODE, name, json.dumps(options), **({"HF_HUB_OFFLINE": "1"} if offline else {}))


def save(folder: Path, value: float) -> None:
    sae = TopKSAE(TopKConfig(d_in=4, d_sae=8, k=2, hook_in="resid_post.0"))
    with torch.no_grad():
        sae.decoder.bias.fill_(value)
    sae.save_pretrained(folder)


def test_each_autoencoder_of_a_repo_is_found_offline_after_the_branch_moved(plain: Client, tmp_path: Path):
    save(tmp_path / "repo" / "a", 1)
    save(tmp_path / "repo" / "b", 2)
    first = plain.hub.add("me/many", tmp_path / "repo")
    before = json.loads(load(plain, "me/many", subfolder="b").stdout)
    assert before == {"commit": first, "b": 2}
    save(tmp_path / "repo" / "a", 3)
    second = plain.hub.add("me/many", tmp_path / "repo")
    assert json.loads(load(plain, "me/many:a").stdout) == {"commit": second, "b": 3}
    assert json.loads(load(plain, "me/many", True, subfolder="a").stdout) == {"commit": second, "b": 3}
    old = load(plain, "me/many", True, subfolder="b")
    assert json.loads(old.stdout) == {"commit": first, "b": 2}, old.stderr
    assert first[:8] in old.stderr, "reading an older commit is said"
    never = load(plain, "me/many", True, subfolder="c")
    assert never.returncode != 0
    assert "not in the cache" in never.stderr


def test_a_branch_or_commit_that_was_asked_for_is_never_replaced(plain: Client, tmp_path: Path):
    save(tmp_path / "repo" / "a", 1)
    first = plain.hub.add("me/many", tmp_path / "repo")
    assert load(plain, "me/many:a").returncode == 0
    assert load(plain, "me/many:a", True, revision="other").returncode != 0
    assert load(plain, "me/many:a", True, revision="0" * 40).returncode != 0
    assert json.loads(load(plain, "me/many:a", True, revision=first).stdout)["commit"] == first


def test_what_a_repo_holds_is_listed_where_something_else_was_asked_for(plain: Client, tmp_path: Path):
    save(tmp_path / "repo" / "layer_3", 1)
    save(tmp_path / "repo" / "layer_7", 1)
    plain.hub.add("me/many", tmp_path / "repo")
    assert "'layer_3', 'layer_7'" in load(plain, "me/many", subfolder="layer_5").stderr
    assert "no such revision" in load(plain, "me/many:layer_3", revision="gone").stderr
    assert "no repo 'me/none'" in load(plain, "me/none").stderr


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert split_name("user/repo:layer_8/k32") == ("user/repo", "layer_8/k32")
    assert split_name("saelens:release/id") == ("saelens:release/id", "")
    assert split_name("gemma-scope:owner/repo/place") == ("gemma-scope:owner/repo/place", "")
    with pytest.raises(CheckpointError, match="'user/repo' with subfolder='layer_8/k32'"):
        AutoSAE.from_pretrained("user/repo/layer_8/k32")
    with pytest.raises(CheckpointError, match="subfolder='layer_8'"):
        TopKSAE.from_pretrained("user/repo/layer_8")
    save(tmp_path / "user" / "repo" / "layer_8", 1)
    monkeypatch.chdir(tmp_path)
    assert AutoSAE.from_pretrained("user/repo/layer_8").config.k == 2, "a folder is a folder"


def test_what_was_loaded_by_branch_tag_short_hash_or_pull_request_is_found_offline(plain: Client, tmp_path: Path):
    save(tmp_path / "repo", 1)
    save(tmp_path / "repo" / "b", 2)
    first = plain.hub.add("me/many", tmp_path / "repo")
    repo = plain.hub.repos["models/me/many"]
    repo.tags["v1"] = repo.branches["dev/x"] = repo.branches["refs/pr/1"] = first
    save(tmp_path / "repo", 3)
    second = plain.hub.add("me/many", tmp_path / "repo")
    for revision in ("v1", "dev/x", "refs/pr/1", first[:8], first):
        assert json.loads(load(plain, "me/many", revision=revision).stdout) == {"commit": first, "b": 1}, revision
        found = load(plain, "me/many", True, revision=revision)
        assert json.loads(found.stdout) == {"commit": first, "b": 1}, found.stderr
    # the trap in its other form: one at the root, one in a folder, and the root's load moves the branch
    assert json.loads(load(plain, "me/many:b", revision="v1").stdout) == {"commit": first, "b": 2}
    assert json.loads(load(plain, "me/many").stdout) == {"commit": second, "b": 3}
    root = load(plain, "me/many", True)
    assert json.loads(root.stdout) == {"commit": second, "b": 3}
    assert "newest one cached" not in root.stderr, "nothing to warn of"
    inside = load(plain, "me/many:b", True)
    assert json.loads(inside.stdout) == {"commit": first, "b": 2}
    assert first[:8] in inside.stderr
    cached = plain.home / "hub" / "models--me--many"
    (cached / "refs" / "broken").write_text(
        "0" * 40
    )  # a note without its commit, as an interrupted download leaves it
    assert json.loads(load(plain, "me/many:b", True).stdout) == {"commit": first, "b": 2}
