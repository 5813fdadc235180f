"""Feature datasets over the wire: the same rows in a fresh process, one feature in a few bytes, a card that is right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_sae.errors import CheckpointError, DataError
from hf_sae.features import writing
from hf_sae.features.manifest import MANIFEST, Manifest, SAESource
from hf_sae.features.writing import FeatureWriter
from hf_sae.hub import load_features, push_features
from hf_sae.hub.cards import GENERATED, KEPT
from hf_sae.hub.feature_cards import render_features_card
from hf_sae.models import TopKConfig, TopKSAE
from tests.features.toy_features import ROWS, SAES, example, explanation, feature, write
from tests.local_hub import LocalHub
from tests.local_hub.client import Client


REPO = "tester/saes-dashboards"
FILES = {f"data/{name}-00000.parquet" for name in ROWS} | {MANIFEST, "README.md", ".gitattributes"}
PUSH = """
import json, sys
from hf_sae import push_features
print(json.dumps(push_features(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))))
"""
PULL = """
import json, sys
from hf_sae import load_features
dataset = load_features(sys.argv[1], **json.loads(sys.argv[2]))
tables = {name: list(getattr(dataset, name)) for name in ("features", "examples", "explanations", "embeddings")}
record = dataset.feature("layer_1", 3)
tables |= {"record": [record.facts, record.examples, record.explanations]}
print(json.dumps({"commit": dataset.commit, **tables}, default=str))
"""
ONE = """
import json, sys
from hf_sae import load_features
dataset = load_features(sys.argv[1])
records = [dataset.feature("layer_2", int(index)) for index in sys.argv[2:]]
print(json.dumps([[r.facts["n_fired"], [e["rank"] for e in r.examples]] for r in records]))
"""


@pytest.fixture(params=[False, True], ids=["regular", "lfs"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    with LocalHub(lfs=request.param) as hub:
        yield Client(hub, tmp_path / "home")


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Client]:
    with LocalHub() as hub:
        yield Client(hub, tmp_path / "home")


def push(client: Client, folder: Path, repo: str = REPO, **options: object) -> str:
    return client.value(PUSH, str(folder), repo, json.dumps(options))


def pull(client: Client, repo: str = REPO, **variables: str) -> dict[str, Any]:
    return client.value(PULL, repo, "{}", **variables)


def as_json(rows: Any) -> Any:
    return json.loads(json.dumps(rows, default=str))


def card_of(client: Client) -> str:
    return client.hub.files(REPO, kind="datasets")["README.md"].decode()


def test_what_was_pushed_comes_back_to_the_bit_and_again_without_a_network(client: Client, tmp_path: Path):
    url = push(client, write(tmp_path / "f"), private=True)
    assert url.startswith(client.hub.url)
    repo = client.hub.repos[f"datasets/{REPO}"]
    assert repo.private
    assert repo.messages == ["initial commit", "Upload features with hf-sae"]
    assert set(client.hub.files(REPO, kind="datasets")) == FILES
    found = pull(client)
    assert found.pop("commit") == repo.branches["main"]
    record = found.pop("record")
    assert found == as_json(ROWS)
    assert record == as_json([ROWS["features"][1], ROWS["examples"][:6], ROWS["explanations"][:2]])
    before = len(client.hub.requests)
    assert pull(client, HF_HUB_OFFLINE="1") == {"commit": repo.branches["main"], "record": record, **found}
    assert len(client.hub.requests) == before


def test_a_dataset_stays_readable_offline_at_its_commit_after_the_branch_moved(plain: Client, tmp_path: Path):
    first = plain.hub.add(REPO, write(tmp_path / "f"), "datasets")
    assert pull(plain)["commit"] == first
    write(tmp_path / "f", {"features": [feature(index=9)]}, overwrite=True)
    second = plain.hub.add(REPO, tmp_path / "f", "datasets")
    code = "import sys; from hf_sae import load_features; print('\"' + load_features(sys.argv[1]).commit + '\"')"
    assert plain.value(code, REPO) == second, "the description alone was fetched"
    found = pull(plain, HF_HUB_OFFLINE="1")
    assert (found["commit"], found["features"]) == (first, as_json(ROWS["features"]))
    pinned = plain.value(PULL, REPO, json.dumps({"revision": first[:40]}))
    assert pinned["commit"] == first
    missing = plain.python(PULL, "tester/never", "{}", HF_HUB_OFFLINE="1")
    assert "hf download --repo-type dataset tester/never" in missing.stderr


def test_datasets_loads_each_configuration_by_the_card_with_the_declared_types(plain: Client, tmp_path: Path):
    push(plain, write(tmp_path / "f"))
    code = """
import json, sys, datasets
from hf_sae.features.schema import TABLES
out = {}
for name in (None, "features", "examples", "explanations", "embeddings"):
    table = datasets.load_dataset(sys.argv[1], name, split="train")
    same = table.features == datasets.Features.from_arrow_schema(TABLES[name or "features"].schema)
    out[str(name)] = [same, list(table)]
print(json.dumps(out, default=str))
"""
    found = plain.value(code, REPO)
    assert found.pop("None") == [True, as_json(ROWS["features"])], "features are the default"
    assert found == {name: [True, as_json(rows)] for name, rows in ROWS.items()}


def test_one_feature_of_a_large_table_is_a_few_ranges(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "ROW_GROUP", 64)
    noise = torch.rand(128 * 20, 11, generator=torch.Generator().manual_seed(0)).double().tolist()
    rows = [example(s, i, rank, acts=noise[i * 20 + rank]) for s in SAES for i in range(64) for rank in range(20)]
    push(
        client, write(tmp_path / "f", {"features": [feature(s, i) for s in SAES for i in range(64)], "examples": rows})
    )
    served: list[tuple[str, int]] = []
    send = client.hub.server.RequestHandlerClass.send

    def counting(self: Any, body: bytes, status: int = 200, **headers: str) -> None:
        if self.command == "GET" and ("/resolve/" in self.path_only or "/objects/" in self.path_only):
            served.append((self.path_only, len(body)))
        send(self, body, status, **headers)

    monkeypatch.setattr(client.hub.server.RequestHandlerClass, "send", counting)
    ranks = list(range(20))
    assert client.value(ONE, REPO, "10", "40") == [[10, ranks], [40, ranks]]
    sizes = {name: len(body) for name, body in client.hub.files(REPO, kind="datasets").items()}
    tables = [size for path, size in served if not path.endswith(("README.md", ".json"))]
    whole = sizes["data/examples-00000.parquet"]
    assert whole > 200_000, "a table of which a feature is a small part"
    assert sum(tables) < whole / 2, f"{sum(tables)} bytes in {len(tables)} reads of {whole}"
    served.clear()
    client.value(ONE, REPO, "10", HF_HUB_OFFLINE="0")
    assert len([path for path, _ in served if "examples" in path]) <= 4


def test_a_smaller_upload_removes_what_the_last_one_had_more(
    plain: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writing, "ROW_GROUP", 2)
    features = [feature(index=i) for i in range(6)]
    push(plain, write(tmp_path / "f", {"features": features}, shard_bytes=1))
    names = set(plain.hub.files(REPO, kind="datasets"))
    assert {"data/features-00001.parquet", "data/features-00002.parquet"} <= names
    write(tmp_path / "f", {"features": features[:2]}, overwrite=True)
    push(plain, tmp_path / "f")
    assert set(plain.hub.files(REPO, kind="datasets")) == FILES
    assert len(plain.hub.repos[f"datasets/{REPO}"].messages) == 3, "in the same commit"
    assert [row["feature"] for row in pull_features(plain)] == [0, 1]


def pull_features(client: Client) -> list[dict[str, Any]]:
    code = "import json, sys; from hf_sae import load_features; print(json.dumps(list(load_features(sys.argv[1]).features)))"
    return client.value(code, REPO)


def test_branches_and_pull_requests(plain: Client, tmp_path: Path):
    folder = write(tmp_path / "f")
    push(plain, folder, revision="next", commit_message="Mine")
    repo = plain.hub.repos[f"datasets/{REPO}"]
    assert set(plain.hub.files(REPO, "next", "datasets")) == FILES
    assert set(plain.hub.files(REPO, "main", "datasets")) == {".gitattributes"}
    assert repo.messages[-1] == "Mine"
    url = push(plain, folder, create_pr=True)
    assert url == f"{plain.hub.url}/{REPO}/discussions/1"
    assert set(plain.hub.files(REPO, "refs/pr/1", "datasets")) == FILES
    assert set(plain.hub.files(REPO, "main", "datasets")) == {".gitattributes"}
    assert plain.value(PULL, REPO, '{"revision": "next"}')["commit"] == repo.branches["next"]


def test_what_the_hub_refuses_is_said_and_nothing_is_committed(plain: Client, tmp_path: Path):
    folder = str(write(tmp_path / "f"))
    for repo, variables, message in (
        ("somebody/else", {}, "this token may not write there"),
        (REPO, {"HF_TOKEN": "wrong"}, "no valid token"),
        ("tester/a/b", {}, "did you mean 'tester/a'"),
        ("tester/with space", {}, "is no repo id"),
    ):
        done = plain.python(PUSH, folder, repo, "{}", **variables)
        assert message in " ".join(done.stderr.split()), done.stderr
    assert plain.hub.repos == {}
    plain.hub.refuse_cards = "too plain"
    done = plain.python(PUSH, folder, REPO, "{}")
    assert "the Hub does not take this upload" in done.stderr
    plain.hub.refuse_cards = None
    plain.hub.break_after(r"POST .*/commit/", 0)
    assert plain.python(PUSH, folder, REPO, "{}").returncode != 0
    assert set(plain.hub.files(REPO, kind="datasets")) == {".gitattributes"}
    plain.hub.broken = None
    push(plain, Path(folder))
    assert set(plain.hub.files(REPO, kind="datasets")) == FILES
    plain.hub.repos[f"datasets/{REPO}"].gated = True
    assert f"https://huggingface.co/datasets/{REPO}" in plain.python(PULL, REPO, "{}").stderr
    missing = plain.python(PULL, "tester/none", "{}")
    assert "there is no repo 'tester/none'" in missing.stderr


def test_a_damaged_folder_is_not_uploaded(tmp_path: Path):
    folder = write(tmp_path / "f")
    (folder / "data/examples-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no Parquet file, or damaged"):
        push_features(folder, REPO)
    with pytest.raises(DataError, match="no feature dataset"):
        push_features(tmp_path, REPO)
    with pytest.raises(DataError, match="there is no folder"):
        push_features(tmp_path / "none", REPO)


def test_names_that_are_none_are_typed_errors(tmp_path: Path):
    write(tmp_path / "f")
    for name, message in (
        ("user/repo/deep", "did you mean 'user/repo'"),
        ("user/repo:deep", "give 'user/repo'"),
        ("../../etc", "neither a folder here nor an id"),
        (str(tmp_path), "no feature dataset"),
    ):
        with pytest.raises((DataError, OSError), match=message):
            load_features(name)
    assert load_features(tmp_path / "f").commit is None


def test_a_hostile_repo_is_a_typed_error(plain: Client, tmp_path: Path):
    folder = write(tmp_path / "f")
    (folder / "saes-dashboards.py").write_text("open('executed', 'w')")  # a dataset script is never looked at
    (folder / "data/examples-00000.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    plain.hub.add(REPO, folder, "datasets")
    for code in ("dataset.feature('layer_1', 3)", "dataset.examples", "list(dataset.batches('examples'))"):
        done = plain.python(f"import sys; from hf_sae import load_features; dataset = load_features({REPO!r}); {code}")
        assert "DataError: 'data/examples-00000.parquet' of 'tester/saes-dashboards' is no Parquet" in done.stderr
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"]["features"][0]["file"] = "data/../../secret-00000.parquet"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    plain.hub.add(REPO, folder, "datasets")
    done = plain.python(PULL, REPO, "{}")
    assert "DataError: feature_dataset.json lists 'data/../../secret-00000.parquet'" in done.stderr
    plain.hub.add("tester/other", tmp_path / "f" / "data", "datasets")
    assert "DataError: 'tester/other' holds no feature_dataset.json" in plain.python(PULL, "tester/other", "{}").stderr


def test_the_card_says_what_it_is_and_its_quickstart_runs_as_it_stands(plain: Client, tmp_path: Path):
    push(plain, write(tmp_path / "f", {name: rows for name, rows in ROWS.items() if name != "embeddings"}))
    card = card_of(plain)
    header = yaml.safe_load(card.split("---")[1])
    assert header["configs"] == [
        {"config_name": "features", "data_files": "data/features-*.parquet", "default": True},
        {"config_name": "examples", "data_files": "data/examples-*.parquet"},
        {"config_name": "explanations", "data_files": "data/explanations-*.parquet"},
    ], "an empty table has no configuration: datasets cannot load one"
    assert {"hf-sae", "sae-dashboards"} <= set(header["tags"])
    assert "[user/saes](https://huggingface.co/user/saes) `layer_1` | `01234567` | topk" in card
    assert "What 5 latents of 2 sparse autoencoders on `org/model` respond to" in card
    assert "`resid_pre.2 → mlp_out.2` | 128 |" in card
    assert "| Dataset | org/text |" in card
    assert "| `acts` | `list<float>` | activation on each token, 0 where it does not fire |" in card
    code = re.findall(r"```python\n(.+?)```", card, re.S)[0]
    done = plain.python(code)
    assert done.returncode == 0, done.stderr
    assert "FeatureDataset('tester/saes-dashboards' at" in done.stdout
    assert done.stdout.splitlines()[-1] == "0.0 []", "feature 0 has a density of 0 and no examples"


def test_own_text_of_a_card_stays_and_a_card_by_hand_is_left_alone(plain: Client, tmp_path: Path):
    folder = write(tmp_path / "f")
    push(plain, folder)
    tree = dict(plain.hub.files(REPO, kind="datasets"))
    plain.hub.repos[f"datasets/{REPO}"].commit("main", tree | {"README.md": tree["README.md"] + b"\nMy own words.\n"})
    with FeatureWriter(folder) as writer:
        writer.append("explanations", [explanation(index=i) for i in range(9)])
    push(plain, folder)
    card = card_of(plain)
    assert "(9 rows)" in card
    assert card.endswith(f"{KEPT}\n\nMy own words.\n")
    tree = dict(plain.hub.files(REPO, kind="datasets"))
    plain.hub.repos[f"datasets/{REPO}"].commit("main", tree | {"README.md": b"# All mine\n"})
    push(plain, folder)
    assert card_of(plain) == "# All mine\n"
    (folder / "README.md").write_text("# The folder's\n")
    push(plain, folder)
    assert card_of(plain) == "# The folder's\n"


def test_no_text_of_a_dataset_acts_as_markup():
    bad = "<img src=x onerror=alert(1)> | `*_[a](javascript:b)\n@all"
    sae = SAESource(
        8, repo_id=bad, subfolder=bad, commit=bad, architecture=bad, hook_in=bad, hook_out=bad, base_model=bad
    )
    card = render_features_card(Manifest({bad: sae}, {bad: bad, "name": bad}), "user/name")
    body = card.split(GENERATED)[1]
    for line in body.splitlines():
        spans = re.sub(r"`[^`]*`", "", line)
        assert "<img" not in spans
        assert "](javascript" not in spans
        assert "@all" not in spans
        if line.startswith("|"):
            columns = len(re.findall(r"(?<!\\)\|", line)) - 1
            assert columns in (2, 3, 7), line


def test_the_command_pushes_it_as_a_dataset(plain: Client, tmp_path: Path):
    folder = str(write(tmp_path / "f"))
    done = plain.cli("push", folder, REPO, "--collection", "My SAEs")
    assert done.returncode == 0, done.stderr
    assert set(plain.hub.repos) == {f"datasets/{REPO}"}
    assert [(i["id"], i["type"]) for c in plain.hub.collections.values() for i in c["items"]] == [(REPO, "dataset")]
    assert done.stdout.strip().splitlines()[-1] == f'Next: load_features("{REPO}") in Python'
    wrong = plain.cli("push", folder, REPO, "--subfolder", "a")
    assert wrong.returncode == 2
    assert "leave --subfolder out" in " ".join(wrong.stderr.split())


def test_a_dataset_loads_the_autoencoder_it_is_about(plain: Client, tmp_path: Path):
    sae = TopKSAE(TopKConfig(d_in=4, d_sae=8, k=2, hook_in="resid_post.0"))
    sae.save_pretrained(tmp_path / "saes" / "layer_0")
    commit = plain.hub.add("tester/saes", tmp_path / "saes")
    code = """
import json, sys
from hf_sae import AutoSAE, load_features
from hf_sae.features.manifest import SAESource
from hf_sae.features.writing import FeatureWriter
sae = AutoSAE.from_pretrained("tester/saes", subfolder="layer_0")
with FeatureWriter(sys.argv[1], {"layer_0": SAESource.of(sae, "layer_0")}) as writer:
    pass
dataset = load_features(sys.argv[1])
again = dataset.load_sae("layer_0")
print(json.dumps([dataset.saes["layer_0"].repo_id, again.config._commit_hash, bool((again.W_dec == sae.W_dec).all())]))
"""
    assert plain.value(code, str(tmp_path / "f")) == ["tester/saes", commit, True]
    with pytest.raises(DataError, match="does not say where 'layer_2' lies"):
        load_features(write(tmp_path / "g")).load_sae("layer_2")


def test_a_name_of_another_kind_is_a_checkpoint_error_of_push(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is no repo id"):
        push_features(write(tmp_path / "f"), "with space/x y")
