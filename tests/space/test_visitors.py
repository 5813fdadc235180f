"""Repos that visitors name: read without a token, safetensors only, their size known before, few at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local_hub import TOKEN, LocalHub
from tests.local_hub.client import Client


ASK = """
import json, sys
from hf_sae.space import catalog, limits
from hf_sae.space.catalog import Catalog
from hf_sae.space.service import Service
catalog.VISITORS = 2
service = Service(Catalog([], visitors=sys.argv[1] == "yes"), patience=60)
for method, arguments in json.loads(sys.argv[2]):
    try:
        value = getattr(service, method)(**arguments)
        print(json.dumps([method, {"ok": sorted(value)[:3] if isinstance(value, dict) else [e["sae"] for e in value]}]))
    except limits.RequestError as error:
        print(json.dumps([method, {"error": str(error)}]))
service.catalog.close()
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with LocalHub() as hub, Client(hub, tmp_path_factory.mktemp("hub") / "home") as found:
        yield found


@pytest.fixture
def client(user: Client) -> Client:
    user.hub.repos.clear()
    user.hub.requests.clear()
    return user


def ask(client: Client, *calls: tuple[str, dict[str, Any]], visitors: bool = True) -> list[dict[str, Any]]:
    done = client.python(ASK, "yes" if visitors else "no", json.dumps(calls))
    assert done.returncode == 0, done.stderr
    return [json.loads(line)[1] for line in done.stdout.splitlines() if line.startswith("[")]


def test_a_repo_with_its_features_is_opened_by_its_name(client: Client, folder: Path):
    client.hub.add("user/sae", folder)
    client.hub.add("user/sae-features", Path(f"{folder}-features"), "datasets")
    found = ask(
        client,
        ("get_feature", {"feature": 0, "sae": "user/sae"}),
        ("inspect_text", {"text": "import os", "sae": "user/sae"}),
        ("search_features", {"query": "import", "sae": "user/sae"}),
        ("list_saes", {}),
    )
    assert [set(answer) for answer in found] == [{"ok"}] * 4
    assert found[3]["ok"] == ["user/sae"]


def test_without_features_texts_can_still_be_inspected(client: Client, folder: Path):
    client.hub.add("user/saes", folder.parent / "planted")
    inside = client.hub.repos["models/user/saes"]
    inside.commit("main", {f"layer_1/{name}": body for name, body in client.hub.files("user/saes").items()})
    found = ask(
        client,
        ("inspect_text", {"text": "import os", "sae": "user/saes/layer_1"}),
        ("get_feature", {"feature": 0, "sae": "user/saes/layer_1"}),
        ("inspect_text", {"text": "import os", "sae": "user/saes"}),
    )
    assert "ok" in found[0]
    assert "has no feature dataset" in found[1]["error"]
    assert "It has autoencoders in layer_1: add one, as in user/saes/layer_1." in found[2]["error"]


def test_no_token_is_sent_for_a_visitor(client: Client, folder: Path):
    client.hub.add("tester/private", folder, private=True)
    (found,) = ask(client, ("inspect_text", {"text": "import", "sae": "tester/private"}))
    assert "no repo" in found["error"]
    done = client.python("from hf_sae import AutoSAE; AutoSAE.from_pretrained('tester/private')", HF_TOKEN=TOKEN)
    assert done.returncode == 0, "the token would have opened it"


def test_what_could_run_code_or_lead_elsewhere_is_refused(client: Client, folder: Path, tmp_path: Path):
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name, extra in (("pickle", "model.bin"), ("code", "modeling.py"), ("adapter", "adapter_config.json")):
        client.hub.add(f"user/{name}", folder)
        client.hub.repos[f"models/user/{name}"].commit("main", files | {extra: b"{}"})
    config = json.loads(files["config.json"])
    for name, base in (("local", str(tmp_path)), ("up", "../x"), ("away", "http://a/b")):
        client.hub.add(f"user/{name}", folder)
        changed = json.dumps(config | {"base_model": base}).encode()
        client.hub.repos[f"models/user/{name}"].commit("main", files | {"config.json": changed})
    names = ("pickle", "code", "adapter", "local", "up", "away")
    found = ask(client, *(("inspect_text", {"text": "import", "sae": f"user/{name}"}) for name in names))
    for answer, message in zip(
        found, ("only safetensors", "only safetensors", "is an adapter", *["names no autoencoder"] * 3), strict=True
    ):
        assert message in answer["error"]
    assert "model.bin" not in client.hub.downloads()
    assert str(tmp_path) not in json.dumps(client.hub.requests)


def test_a_repo_that_is_too_large_is_not_downloaded(client: Client, folder: Path):
    client.hub.add("user/sae", folder)
    small = "import hf_sae.space.sources as s; s.Visited.__init__.__defaults__ = (100,)\n" + ASK
    calls = json.dumps([("inspect_text", {"text": "import", "sae": "user/sae"})])
    done = client.python(small, "yes", calls)
    assert "this Space loads 0 MiB at most" in done.stdout, done.stderr
    assert "model.safetensors" not in client.hub.downloads()


def test_few_are_kept_and_the_oldest_goes(client: Client, folder: Path):
    for name in "abc":
        client.hub.add(f"user/{name}", folder)
    calls = [("inspect_text", {"text": "import", "sae": f"user/{name}"}) for name in "abca"]
    found = ask(client, *calls, ("list_saes", {}))
    assert [set(answer) for answer in found[:4]] == [{"ok"}] * 4
    assert found[4]["ok"] == ["user/c", "user/a"]


def test_visitors_can_be_switched_off(client: Client, folder: Path):
    client.hub.add("user/sae", folder)
    (found,) = ask(client, ("get_feature", {"feature": 0, "sae": "user/sae"}), visitors=False)
    assert "is not served here" in found["error"]
    assert client.hub.requests == []


def test_a_folder_with_several_is_served_by_the_names_of_its_folders(folder: Path, tmp_path: Path):
    from hf_sae.space.catalog import open_catalog

    for name in ("layer_1", "layer_2"):
        shutil.copytree(folder, tmp_path / "saes" / name)
    catalog = open_catalog(str(tmp_path / "saes"))
    assert [served.name for served in catalog.served()] == ["saes/layer_1", "saes/layer_2"]
    assert catalog.find("saes/layer_2").machine.get(60).call(lambda: True)
    assert catalog.find("").name == "saes/layer_1"
    one, two = (catalog.find(name).machine.get(60) for name in ("saes/layer_1", "saes/layer_2"))
    assert one is two, "one host for both"
    catalog.close()
