"""`hf-sae space create` against a Hub on loopback, and the Space that it makes."""

from __future__ import annotations

import json
import pickle
import runpy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_sae.errors import ConfigError
from hf_sae.space import serve as serving
from hf_sae.space import zero
from hf_sae.space.limits import RequestError
from hf_sae.space.publishing import space_files
from hf_sae.space.serve import SpaceSettings
from hf_sae.space.service import Service
from tests.local_hub import TOKEN, LocalHub
from tests.local_hub.client import Client


ROOT = Path(__file__).parents[2]
SPACE = "tester/features"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with LocalHub() as hub, Client(hub, tmp_path_factory.mktemp("hub") / "home") as found:
        yield found


@pytest.fixture
def client(user: Client) -> Client:
    user.hub.repos.clear()
    user.hub.requests.clear()
    return user


def header(readme: str) -> dict[str, Any]:
    return yaml.safe_load(readme.split("---\n")[1])


def test_create_makes_a_gradio_space_with_files_and_variables(client: Client):
    done = client.cli(
        "space", "create", SPACE, "--sae", "user/sae", "--features", "user/f", "--only-this", "--private"
    )
    assert done.returncode == 0, done.stderr
    repo = client.hub.repos[f"spaces/{SPACE}"]
    assert (repo.sdk, repo.private) == ("gradio", True)
    assert repo.variables == {"HF_SAE_REPO": "user/sae", "HF_SAE_FEATURES": "user/f", "HF_SAE_ONLY_THIS": "1"}
    files = client.hub.files(SPACE, kind="spaces")
    assert set(files) == {".gitattributes", "README.md", "app.py", "requirements.txt"}
    made = space_files(SpaceSettings("user/sae", features="user/f", visitors=False))
    assert {name: files[name].decode() for name in made} == made
    assert "secret HF_TOKEN" in " ".join(done.stdout.split())
    assert TOKEN not in done.stdout + done.stderr + "".join(body.decode() for body in files.values())


def test_a_second_time_brings_it_up_to_date_and_keeps_other_files(client: Client):
    assert client.cli("space", "create", SPACE, "--sae", "user/sae", "--only-this").returncode == 0
    repo = client.hub.repos[f"spaces/{SPACE}"]
    repo.variables["OTHER"] = "stays"
    repo.commit("main", client.hub.files(SPACE, kind="spaces") | {"notes.md": b"mine"})
    assert client.cli("space", "create", SPACE, "--sae", "user/other", "--host", "org/model").returncode == 0
    assert repo.variables == {"OTHER": "stays", "HF_SAE_REPO": "user/other", "HF_SAE_HOST": "org/model"}
    assert client.hub.files(SPACE, kind="spaces")["notes.md"] == b"mine"
    done = client.cli("space", "create", SPACE, "--sae", "user/sae", "--private")
    assert done.returncode == 2
    assert "exists and is public" in done.stderr


def test_dry_run_prints_and_asks_nobody(client: Client):
    done = client.cli("space", "create", SPACE, "--sae", "user/sae", "--title", "Mine", "--dry-run", "--json")
    payload = json.loads(done.stdout)
    assert payload["variables"] == {"HF_SAE_REPO": "user/sae"}
    assert header(payload["files"]["README.md"])["title"] == "Mine"
    assert client.hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["someone/else", "--sae", "user/sae"], "may not write there"),
        (["no-repo-id/x/y", "--sae", "user/sae"], "repo id"),
        ([SPACE, "--sae", "."], "is no repo of the Hub"),
        ([SPACE, "--sae", "user/sae", "--features", "./f"], "is no repo of the Hub"),
    ],
)
def test_mistakes_are_said(client: Client, arguments: list[str], message: str):
    done = client.cli("space", "create", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_titles_are_text():
    readme = space_files(SpaceSettings("user/sae"), "a: <b>*x*</b> {{ 1 }}")["README.md"]
    assert header(readme)["title"] == "a: <b>*x*</b> {{ 1 }}"
    assert "<b>" not in readme.split("---\n")[2]


def test_the_committed_space_is_what_create_makes():
    made = space_files(SpaceSettings("user/my-sae"), "Feature explorer")
    folder = ROOT / "spaces" / "feature_explorer"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()} == made
    assert header(made["README.md"]) | {"sdk": "gradio", "app_file": "app.py"} == header(made["README.md"])


def test_the_app_serves_what_its_variables_say(monkeypatch: pytest.MonkeyPatch):
    given: list[SpaceSettings] = []
    monkeypatch.setattr(serving, "serve", given.append)
    monkeypatch.setenv("HF_SAE_REPO", "user/saes")
    monkeypatch.setenv("HF_SAE_SUBFOLDER", "layer_1")
    monkeypatch.setenv("HF_SAE_ONLY_THIS", "true")
    runpy.run_path(str(ROOT / "spaces" / "feature_explorer" / "app.py"), run_name="__main__")
    assert given == [SpaceSettings("user/saes", "layer_1", visitors=False)]
    assert SpaceSettings.of(given[0].variables()) == given[0]
    with pytest.raises(ConfigError, match="HF_SAE_REPO is not set"):
        SpaceSettings.of({})


def test_on_zero_gpu_calls_take_the_device_and_errors_keep_their_words(folder: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[float] = []

    def gpu(duration: float) -> Any:
        def wrap(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                taken.append(duration)
                try:
                    sent = pickle.loads(pickle.dumps((args, kwargs)))
                    return pickle.loads(pickle.dumps(function(*sent[0], **sent[1])))
                except Exception as error:  # what the real one does: only the class arrives
                    raise RuntimeError("ZeroGPU worker error") from error

            return call

        return wrap

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert zero.is_zero()
    service = serving.open_service(SpaceSettings(str(folder)))
    assert service.list_saes()[0]["status"]["host"] == "ready", "the host is there before the first visitor"
    assert service.inspect_text("import os")["tokens"][1]["latents"][0]["latent"] == 0
    with pytest.raises(RequestError, match="text is empty"):
        service.inspect_text("")
    service.get_feature(0)
    assert taken == [zero.SECONDS] * 2, "browsing takes no device"
    edits = [{"feature": 0, "strength": 4.0, "unit": "latent"}]
    alone = Service(service.catalog).steer("import os", edits, max_new_tokens=4)
    assert service.steer("import os", edits, max_new_tokens=4) == alone
    assert len(taken) == 3
    assert not service.streams_here, "the tab asks for whole texts"
    (shown,) = _steer_tab(service, edits)
    assert [len(stream["tokens"]) for stream in shown[1]] == [4, 4]
    service.catalog.close()


def _steer_tab(service: Service, edits: list[Any]) -> list[Any]:
    """What the tab shows of a run, with Gradio's components left out."""
    from hf_sae.space.tabs.steer import Steer

    tab = object.__new__(Steer)
    tab.page = types.SimpleNamespace(service=service, named=lambda sae: "")
    tab._runs = {}
    request = types.SimpleNamespace(session_hash="a")
    return list(tab.run(request, "", "import os", json.dumps(edits), 4, 0.0, 1.0, 0, False, False, "", "all", False))
