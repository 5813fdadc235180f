"""Repos that cannot be read: the error says what to do, over a Hub on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import EntryNotFoundError

from hf_sae.access import explained
from tests.local_hub import TOKEN, LocalHub
from tests.local_hub.client import Client


SAE = "from hf_sae import AutoSAE; AutoSAE.from_pretrained('google/gemma-scope-2b-pt-res', subfolder='x')"
HOST = "from hf_sae.hosts.loading import load_host; load_host('google/gemma-3-270m-it')"


def last_line(client: Client, code: str, **variables: str) -> str:
    done = client.python(code, **variables)
    assert done.returncode == 1
    assert TOKEN not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("code", "repo"), [(SAE, "google/gemma-scope-2b-pt-res"), (HOST, "google/gemma-3-270m-it")])
def test_gated_missing_and_unreachable(tmp_path: Path, code: str, repo: str):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "README.md").write_text("x")
    hub = LocalHub()
    with Client(hub, tmp_path / "home") as client:
        with hub:
            message = last_line(client, code)
            assert f"no repo '{repo}', or it is private" in message
            assert "hf auth login" in message
            hub.add(repo, tmp_path / "files", gated=True)
            message = last_line(client, code)
            assert f"https://huggingface.co/{repo}" in message
            assert "hf auth login" in message
        message = last_line(client, code)
        assert f"`hf download {repo}`" in message
        assert "HF_HUB_OFFLINE" not in message
        assert "HF_HUB_OFFLINE is set" in last_line(client, code, HF_HUB_OFFLINE="1")


def test_other_errors_pass():
    with pytest.raises(FileNotFoundError, match="mine"), explained("a/b"):
        raise FileNotFoundError("mine")
    with pytest.raises(ValueError, match="other"), explained("a/b"):
        raise ValueError("other")
    with pytest.raises(EntryNotFoundError), explained("a/b"):
        raise EntryNotFoundError("no file")
