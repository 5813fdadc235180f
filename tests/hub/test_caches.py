"""Activation caches over the wire: the same tokens in a fresh process, one shard at a time, a card that is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_sae.activations import Manifest
from hf_sae.hub.cache_cards import render_cache_card
from hf_sae.hub.caches import without_paths
from tests.activations.toy import cache, files
from tests.local_hub import LocalHub
from tests.local_hub.client import Client, last_line


REPO = "tester/toy-activations"
PUSH = """
import json, sys
from hf_sae.hub import push_cache
print(json.dumps(push_cache(sys.argv[1], sys.argv[2])))
"""
READ = """
import json, os, sys
from hf_sae.activations import CachedStream
options = json.loads(sys.argv[2])
limit = options.pop("limit", 10**9)
stream, got, most = CachedStream(sys.argv[1], **options), [], 0
for rows in stream.batches(10):
    got += rows.token_ids.tolist()
    own = getattr(stream.shards, "_own", None)
    most = max(most, len([n for n in os.listdir(own.name) if n.endswith(".safetensors")]) if own else 0)
    if len(got) >= limit:
        break
print(json.dumps({"got": got, "commit": stream.info()["cache"]["commit"], "most": most, "counts": stream.counts}))
"""


class Place:
    """A repo of its own on the Hub that the tests of this file share, since processes take seconds to start."""

    def __init__(self, client: Client, repo: str) -> None:
        self.client, self.hub, self.repo = client, client.hub, repo
        self.began = len(self.hub.requests)

    def add(self, folder: Path) -> str:
        return self.hub.add(self.repo, folder, kind="datasets")

    def push(self, folder: Path) -> Any:
        return self.client.python(PUSH, str(folder), self.repo)

    def run(self, **options: Any) -> Any:
        return self.client.python(READ, self.repo, json.dumps(options))

    def read(self, offline: bool = False, **options: Any) -> dict[str, Any]:
        variables = {"HF_HUB_OFFLINE": "1"} if offline else {}
        return self.client.value(READ, self.repo, json.dumps(options), **variables)

    def files(self) -> dict[str, bytes]:
        return self.hub.files(self.repo, kind="datasets")

    @property
    def requests(self) -> list[str]:
        return self.hub.requests[self.began :]

    @property
    def downloads(self) -> list[str]:
        """Shards that were asked for; their content comes from another address."""
        lines = [r for r in self.requests if "/resolve/" in r and "activations-" in r]
        return [line.rsplit("/", 1)[1] for line in lines]

    @property
    def cached(self) -> list[Path]:
        folder = f"datasets--{self.repo.replace('/', '--')}"
        return [path for path in self.client.home.rglob("activations-*") if folder in path.parts]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path_factory.mktemp("caches") / "home") as made:
        yield made


@pytest.fixture
def place(shared: Client, request: pytest.FixtureRequest) -> Place:
    return Place(shared, f"tester/{request.node.name[5:60].strip('_').replace('_', '-')}")


def test_what_was_pushed_is_streamed_and_again_without_a_network(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    assert last_line(place.push(tmp_path / "c")).startswith(place.hub.url)
    shards = {name: content for name, content in files(tmp_path / "c").items() if name.endswith(".safetensors")}
    assert {name: place.files()[name] for name in shards} == shards
    assert set(place.files()) == {*shards, "manifest.json", "README.md", ".gitattributes"}
    found = place.read()
    assert found["got"] == list(range(100))
    assert found["commit"] == place.hub.repos[f"datasets/{place.repo}"].branches["main"]
    before = len(place.requests)
    assert place.read(offline=True) == found
    assert len(place.requests) == before


def test_shards_come_when_they_are_needed_the_next_one_ahead(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    place.add(tmp_path / "c")
    assert place.read(limit=20)["got"] == list(range(20))
    assert {"activations-00000.safetensors"} <= set(place.downloads)
    assert set(place.downloads) <= {"activations-00000.safetensors", "activations-00001.safetensors"}


def test_downloads_are_not_kept_where_that_is_asked_for(place: Place, tmp_path: Path):
    cache(tmp_path / "c", rows=10)
    place.add(tmp_path / "c")
    found = place.read(keep=False)
    assert found["got"] == list(range(100))
    assert 1 <= found["most"] <= 2
    assert not place.cached
    epochs = place.read(keep=False, repeat=True, limit=200)
    assert sorted(epochs["got"]) == sorted([*range(100)] * 2)


def test_a_run_reads_the_commit_that_it_began_with(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    commit = place.add(tmp_path / "c")
    cache(tmp_path / "d", total=60)
    place.add(tmp_path / "d")
    assert place.read()["got"] == list(range(60))
    assert place.read(revision=commit)["got"] == list(range(100))


def test_a_damaged_shard_on_the_hub_is_fetched_again_then_named(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    spoil(tmp_path / "c" / "activations-00002.safetensors")
    place.add(tmp_path / "c")
    done = place.run()
    assert done.returncode
    assert "'activations-00002.safetensors' is damaged: its SHA-256" in done.stderr
    assert place.downloads.count("activations-00002.safetensors") >= 2
    found = place.read(skip_corrupt=True)
    assert found["got"] == [*range(60), *range(90, 100)]
    assert found["counts"]["skipped_tokens"] == 30


def test_a_download_that_was_damaged_here_is_repaired(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    place.add(tmp_path / "c")
    place.read()
    (blob,) = {path.resolve() for path in place.cached if "00001" in path.name}
    spoil(blob)
    assert place.read()["got"] == list(range(100))


def test_the_commands_push_and_read_the_hub(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    done = place.client.cli("cache", "push", str(tmp_path / "c"), place.repo, "--json")
    assert json.loads(done.stdout)["url"].startswith(place.hub.url), done.stderr
    facts = json.loads(place.client.cli("cache", "info", place.repo, "--json").stdout)
    assert facts["commit"] == place.hub.repos[f"datasets/{place.repo}"].branches["main"]
    done = place.client.cli("cache", "verify", place.repo)
    assert done.stdout.splitlines()[-1] == f"Next: hf-sae train --cache {place.repo}", done.stderr


def test_a_smaller_cache_replaces_a_larger_one_and_own_text_stays(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    last_line(place.push(tmp_path / "c"))
    tree = dict(place.files())
    tree["README.md"] += b"\nWritten by hand.\n"
    place.hub.repos[f"datasets/{place.repo}"].commit("main", tree)
    cache(tmp_path / "d", total=60)
    last_line(place.push(tmp_path / "d"))
    assert sum(name.startswith("activations") for name in place.files()) == 2
    assert "Written by hand." in place.files()["README.md"].decode()
    assert place.read()["got"] == list(range(60))


def test_nothing_damaged_goes_up(place: Place, tmp_path: Path):
    cache(tmp_path / "c")
    spoil(tmp_path / "c" / "activations-00002.safetensors")
    done = place.push(tmp_path / "c")
    assert done.returncode
    assert "activations-00002.safetensors" in done.stderr
    assert f"datasets/{place.repo}" not in place.hub.repos


def test_an_upload_that_broke_off_commits_nothing_and_is_not_sent_twice(place: Place, tmp_path: Path):
    cache(tmp_path / "c", total=77)  # content that the Hub does not have yet
    place.hub.break_after(r"POST /api/datasets/.*/commit/", 0)
    assert place.push(tmp_path / "c").returncode
    assert any(line.startswith("PUT") for line in place.requests)
    assert set(place.files()) == {".gitattributes"}
    place.hub.broken = None
    before = len(place.requests)
    last_line(place.push(tmp_path / "c"))
    assert not [line for line in place.requests[before:] if line.startswith("PUT")]


def test_what_is_no_cache(place: Place, tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "README.md").write_text("nothing")
    place.add(tmp_path / "x")
    assert "holds no activation cache" in place.run().stderr
    assert "there is no repo" in place.client.python(READ, "tester/none", "{}").stderr
    assert "a cache is a repo" in place.client.python(READ, f"{place.repo}:folder", "{}").stderr


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def test_the_card_says_what_the_manifest_says_and_escapes_it(tmp_path: Path):
    cache(tmp_path)
    path = tmp_path / "manifest.json"
    facts = json.loads(path.read_text())
    facts["source"] |= {"data": {"dataset": "<b>x</b>|y", "context_length": 128}, "counts": {"non_finite": 3}}
    path.write_text(json.dumps(facts))
    manifest = Manifest.open(tmp_path)
    card = render_cache_card(manifest, REPO)
    header = yaml.safe_load(card.split("---")[1])
    assert header["tags"][0] == "hf-sae"
    assert header["base_model"] == "org/toy"
    assert header["viewer"] is False
    assert "100 tokens" in card
    assert "in 4 shards of 30 tokens" in card
    assert f'CachedStream("{REPO}", repeat=True)' in card
    assert "<b>" not in card
    assert "Left out, not finite | 3" in card
    mean_norm = manifest.points["mlp_in.0"].mean_norm
    assert f"| `mlp_in.0` | 3 | {mean_norm:.4g} |" in card


def test_the_quickstart_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache(tmp_path / "c", total=4096, rows=4096)
    card = render_cache_card(Manifest.open(tmp_path / "c"), str(tmp_path / "c"))
    monkeypatch.chdir(tmp_path)
    exec(card.split("```python")[1].split("```")[0], {})
    assert (tmp_path / "sae" / "model.safetensors").is_file()


def test_paths_of_this_machine_stay_here(tmp_path: Path):
    (tmp_path / "m").mkdir()
    given = {"base_model": str(tmp_path / "m"), "data": {"dataset": "org/name", "files": [str(tmp_path)]}, "seed": 0}
    assert without_paths(given) == {
        "base_model": "m",
        "data": {"dataset": "org/name", "files": [tmp_path.name]},
        "seed": 0,
    }
