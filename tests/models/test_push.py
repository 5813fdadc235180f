from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from hf_sae.models import AutoSAE
from tests.training.planted import topk


class Hub:
    """Keeps what was uploaded instead of sending it."""

    uploads: list[dict]

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, **options: object) -> None:
        pass

    def upload_folder(self, folder_path: Path, **options: object) -> object:
        files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        self.uploads.append({"files": files, "token": self.token, **options})
        return type("Commit", (), {"commit_url": "https://hub/commit/1", "pr_url": None})()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.uploads = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_push_sends_model_and_our_card_in_one_commit(hub: type[Hub], tmp_path: Path) -> None:
    sae = topk()
    assert sae.push_to_hub("me/sae", subfolder="layer_0", token="hf_secret") == "https://hub/commit/1"
    (upload,) = hub.uploads
    assert set(upload["files"]) == {"config.json", "model.safetensors", "README.md"}
    assert upload["path_in_repo"] == "layer_0"
    card = upload["files"]["README.md"].decode()
    assert "library_name: hf-sae" in card
    assert 'subfolder="layer_0"' in card
    assert b"hf_secret" not in b"".join(upload["files"].values())
    for name, content in upload["files"].items():
        (tmp_path / name).write_bytes(content)
    assert AutoSAE.from_pretrained(tmp_path).config.k == 2


def test_save_and_push(hub: type[Hub], tmp_path: Path) -> None:
    topk().save_pretrained(tmp_path / "sae", push_to_hub=True, repo_id="me/sae")
    assert [u["repo_id"] for u in hub.uploads] == ["me/sae"]
    assert (tmp_path / "sae" / "model.safetensors").exists()
