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

from hf_sae.cli import main
from hf_sae.errors import CheckpointError, DataError
from hf_sae.features import writing
from hf_sae.features.manifest import MANIFEST, Manifest, SAESource
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.writing import FeatureWriter
from hf_sae.hub import load_features, push_features
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
    with LocalHub(lfs=request.param) as hub, Client(hub, tmp_path / "home") as running:
        yield running


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Client]:
    with LocalHub() as hub, Client(hub, tmp_path / "home") as running:
        yield running


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
    card = render_features_card(load_features(tmp_path / "f").manifest, REPO)
    assert card_of(client) == card
    found = pull(client)
    assert found.pop("commit") == repo.branches["main"]
    record = found.pop("record")
    assert found == as_json(ROWS)
    assert record == as_json([ROWS["features"][1], ROWS["examples"][:6], ROWS["explanations"][:2]])
    before = len(client.hub.requests)
    assert pull(client, HF_HUB_OFFLINE="1") == {"commit": repo.branches["main"], "record": record, **found}
    assert len(client.hub.requests) == before


def test_the_index_of_a_commit_is_made_once_and_then_needs_no_request(plain: Client, tmp_path: Path):
    push(plain, write(tmp_path / "f"))
    commit = plain.hub.repos[f"datasets/{REPO}"].branches["main"]
    code = f"""
import json
from hf_sae import FeatureIndex, load_features
from hf_sae.features.search.embedders import WordsOnly
with FeatureIndex.open(load_features({REPO!r}, {commit!r}), {str(tmp_path / "index")!r}, WordsOnly()) as index:
    print(json.dumps([[hit.sae_id, hit.feature, hit.label] for hit in index.search("imports")]))
"""
    first = plain.value(code)
    assert ["layer_1", 3, "imports\nof 'os'"] in first
    (folder,) = (tmp_path / "index").iterdir()
    made, before = (folder / "stamp.json").stat().st_ino, len(plain.hub.requests)
    assert plain.value(code) == first
    assert (folder / "stamp.json").stat().st_ino == made
    # one to list the files of the commit, none for what the index is made of
    assert plain.hub.requests[before:] == [f"GET /api/datasets/{REPO}/revision/{commit}"]


def test_a_dataset_stays_readable_offline_at_its_commit_after_the_branch_moved(plain: Client, tmp_path: Path):
    first = plain.hub.add(REPO, write(tmp_path / "f"), "datasets")
    assert pull(plain)["commit"] == first
    write(tmp_path / "f", {"features": [feature(index=9)]}, overwrite=True)
    second = plain.hub.add(REPO, tmp_path / "f", "datasets")
    commits = """
import json, sys
from hf_sae import load_features
print(json.dumps([load_features(sys.argv[1], revision).commit for revision in (None, "main", sys.argv[2])]))
"""
    assert plain.value(commits, REPO, first) == [second, second, first], "the description alone was fetched"
    found = pull(plain, HF_HUB_OFFLINE="1")
    assert (found["commit"], found["features"]) == (first, as_json(ROWS["features"]))


def test_datasets_loads_each_configuration_by_the_card_with_the_declared_types(plain: Client, tmp_path: Path):
    publish(plain, write(tmp_path / "f"))
    code = """
import json, sys, datasets
from hf_sae.features.schema import TABLES
datasets.config.USE_PARQUET_EXPORT = False  # asks the viewer's host
out = {}
for name in (None, "features", "examples", "explanations", "embeddings"):
    table = datasets.load_dataset(sys.argv[1], name, split="train")
    same = table.features == datasets.Features.from_arrow_schema(TABLES[name or "features"].schema)
    out[str(name)] = [same, list(table)]
print(json.dumps(out, default=str))
"""
    found = plain.value(code, REPO, HF_UPDATE_DOWNLOAD_COUNTS="0")  # counts loads at another host
    assert found.pop("None") == [True, as_json(ROWS["features"])], "features are the default"
    assert found == {name: [True, as_json(rows)] for name, rows in ROWS.items()}


def test_one_feature_of_a_large_table_is_a_few_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "ROW_GROUP", 64)
    noise = torch.rand(128 * 20, 11, generator=torch.Generator().manual_seed(0)).double().tolist()
    rows = [example(s, i, rank, acts=noise[i * 20 + rank]) for s in SAES for i in range(64) for rank in range(20)]
    write(tmp_path / "f", {"features": [feature(s, i) for s in SAES for i in range(64)], "examples": rows})
    served: list[tuple[str, int]] = []
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path / "home") as client:
        hub.add(REPO, tmp_path / "f", "datasets")
        send = hub.server.RequestHandlerClass.send

        def counting(self: Any, body: bytes, status: int = 200, **headers: str) -> None:
            if self.command == "GET" and status in (200, 206) and "/objects/" in self.path_only:
                served.append((self.path_only, len(body)))
            send(self, body, status, **headers)

        monkeypatch.setattr(hub.server.RequestHandlerClass, "send", counting)
        ranks = list(range(20))
        found = client.value(ONE, REPO, "10", "40")
    assert found == [[10, ranks], [40, ranks]]
    whole = (tmp_path / "f/data/examples-00000.parquet").stat().st_size
    assert sum(size for _, size in served) < whole / 2, f"{served} of {whole}"
    assert max(size for _, size in served) <= 1 << 16, "the largest read is the tail that holds the footer"
    # per table the footer once and the row groups of each feature; the other tables are known to have no such rows
    assert len(served) <= 8, served


def test_a_smaller_upload_removes_what_the_last_one_had_more(
    plain: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writing, "ROW_GROUP", 2)
    features = [feature(index=i) for i in range(6)]
    publish(plain, write(tmp_path / "f", {"features": features}, shard_bytes=1))
    names = set(plain.hub.files(REPO, kind="datasets"))
    assert {"data/features-00001.parquet", "data/features-00002.parquet"} <= names
    write(tmp_path / "f", {"features": features[:2]}, overwrite=True)
    (tmp_path / "f" / "README.md").unlink()
    push(plain, tmp_path / "f")
    files = plain.hub.files(REPO, kind="datasets")
    assert set(files) == FILES - {".gitattributes"}
    assert len(plain.hub.repos[f"datasets/{REPO}"].messages) == 2, "in the same commit"
    kept = {name: (tmp_path / "f" / name).read_bytes() for name in files if name != "README.md"}
    assert {name: files[name] for name in kept} == kept


def test_branches_and_pull_requests(plain: Client, tmp_path: Path):
    code = """
import json, sys
from hf_sae import load_features, push_features
push_features(sys.argv[1], sys.argv[2], revision="next", commit_message="Mine")
commit = load_features(sys.argv[2], "next").commit
print(json.dumps([commit, push_features(sys.argv[1], sys.argv[2], create_pr=True)]))
"""
    commit, url = plain.value(code, str(write(tmp_path / "f")), REPO)
    repo = plain.hub.repos[f"datasets/{REPO}"]
    assert (commit, repo.messages[1]) == (repo.branches["next"], "Mine")
    assert url == f"{plain.hub.url}/{REPO}/discussions/1"
    assert set(plain.hub.files(REPO, "next", "datasets")) == FILES
    assert set(plain.hub.files(REPO, "refs/pr/1", "datasets")) == FILES
    assert set(plain.hub.files(REPO, "main", "datasets")) == {".gitattributes"}


def test_what_the_hub_refuses_is_said_and_nothing_is_committed(plain: Client, tmp_path: Path):
    folder = str(write(tmp_path / "f"))
    cases = (
        ("somebody/else", None, "OSError", "this token may not write there"),
        (REPO, "wrong", "OSError", "no valid token"),
        ("tester/a/b", None, "CheckpointError", "did you mean 'tester/a'"),
        ("tester/with space", None, "CheckpointError", "is no repo id"),
    )
    said = errors(plain, *((f"push_features({folder!r}, {repo!r}, token={token!r})") for repo, token, *_ in cases))
    for (kind, message), (*_, wanted, part) in zip(said, cases, strict=True):
        assert (kind, part in message) == (wanted, True), message
    assert plain.hub.repos == {}
    upload = f"push_features({folder!r}, {REPO!r})"
    plain.hub.refuse_cards = "too plain"
    assert "the Hub does not take this upload" in errors(plain, upload)[0][1]
    plain.hub.refuse_cards = None
    plain.hub.break_after(r"POST .*/commit/", 0)
    errors(plain, upload)
    assert set(plain.hub.files(REPO, kind="datasets")) == {".gitattributes"}
    plain.hub.broken = None
    push(plain, Path(folder))
    assert set(plain.hub.files(REPO, kind="datasets")) == FILES


def test_what_cannot_be_read_is_said(plain: Client, tmp_path: Path):
    plain.hub.add(REPO, write(tmp_path / "f"), "datasets", gated=True)
    code = [f"load_features({REPO!r})", "load_features('tester/none')", "load_features('tester/none', 'v1')"]
    gated, missing, _ = (message for _, message in errors(plain, *code))
    assert f"https://huggingface.co/datasets/{REPO}" in gated
    assert "there is no repo 'tester/none'" in missing
    [(kind, message)] = errors(plain, "load_features('tester/never')", HF_HUB_OFFLINE="1")
    assert (kind, "hf download --repo-type dataset tester/never" in message) == ("OSError", True)


def errors(client: Client, *expressions: str, **variables: str) -> list[tuple[str, str]]:
    """Type and text of what each expression raises, in one fresh process."""
    code = """
import json, sys
from hf_sae import load_features, push_features
out = []
for expression in sys.argv[1:]:
    try:
        out.append(["none", repr(eval(expression))])
    except Exception as error:
        out.append([type(error).__name__, " ".join(str(error).split())])
print(json.dumps(out))
"""
    return [(kind, message) for kind, message in client.value(code, *expressions, **variables)]


def publish(client: Client, folder: Path) -> str:
    """Puts a dataset with its card on the Hub by hand."""
    card = render_features_card(FeatureDataset.open(folder).manifest, REPO)
    (folder / "README.md").write_text(card)
    return client.hub.add(REPO, folder, "datasets")


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
        ("../nowhere/at-all", "is no folder here"),
        (str(tmp_path), "no feature dataset"),
    ):
        with pytest.raises((DataError, OSError), match=message):
            load_features(name)
    assert load_features(tmp_path / "f").commit is None


def test_a_hostile_repo_is_a_typed_error(plain: Client, tmp_path: Path):
    folder = write(tmp_path / "f")
    (folder / "saes-dashboards.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (folder / "data/examples-00000.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    plain.hub.add(REPO, folder, "datasets")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"]["features"][0]["file"] = "data/../../secret-00000.parquet"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    plain.hub.add("tester/paths", folder, "datasets")
    plain.hub.add("tester/other", folder / "data", "datasets")
    one = f"load_features({REPO!r})"
    uses = [f"{one}.feature('layer_1', 3)", f"{one}.examples", f"list({one}.batches('examples'))"]
    *damaged, paths, other = errors(plain, *uses, "load_features('tester/paths')", "load_features('tester/other')")
    for kind, message in damaged:
        assert kind == "DataError"
        assert f"'data/examples-00000.parquet' of {REPO!r} is no Parquet" in message
    assert paths == ("DataError", paths[1])
    assert "lists 'data/../../secret-00000.parquet'" in paths[1]
    assert other[0] == "DataError"
    assert "'tester/other' holds no feature_dataset.json" in other[1]
    assert not (tmp_path / "executed").exists(), "a dataset script is never looked at"


def test_the_card_says_what_it_is_and_its_quickstart_runs_as_it_stands(plain: Client, tmp_path: Path):
    publish(plain, write(tmp_path / "f", {name: rows for name, rows in ROWS.items() if name != "embeddings"}))
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
    publish(plain, write(tmp_path / "f"))
    repo, folder = plain.hub.repos[f"datasets/{REPO}"], tmp_path / "f"
    tree = dict(plain.hub.files(REPO, kind="datasets"))
    repo.commit("main", tree | {"README.md": tree["README.md"] + b"\nMy own words.\n"})
    repo.commit("by_hand", tree | {"README.md": b"# All mine\n"})
    with FeatureWriter(folder) as writer:
        writer.append("explanations", [explanation(number=i) for i in range(9)])
    code = """
import pathlib, sys
from hf_sae import push_features
push_features(sys.argv[1], sys.argv[2])
push_features(sys.argv[1], sys.argv[2], revision="by_hand")
(pathlib.Path(sys.argv[1]) / "README.md").write_text("# The folder's\\n")
push_features(sys.argv[1], sys.argv[2], revision="other")
"""
    done = plain.python(code, str(folder), REPO)
    assert done.returncode == 0, done.stderr
    cards = {branch: plain.hub.files(REPO, branch, "datasets")["README.md"].decode() for branch in repo.branches}
    assert "(9 rows)" in cards["main"]
    assert cards["main"].endswith("<!-- hf-sae:limits:end -->\n\nMy own words.\n")
    for branch, text in (("by_hand", "# All mine"), ("other", "# The folder's")):
        _, header, body = cards[branch].split("---\n")
        assert body.strip() == text
        assert "config_name: features" in header, "without it the viewer does not find the tables"


def test_no_text_of_a_dataset_acts_as_markup():
    bad = "<img src=x onerror=alert(1)> | `*_[a](javascript:b)\n@all"
    sae = SAESource(
        8, repo_id=bad, subfolder=bad, commit=bad, architecture=bad, hook_in=bad, hook_out=bad, base_model=bad
    )
    card = render_features_card(Manifest({bad: sae}, {bad: bad, "name": bad}), "user/name")
    body = card.split("<!-- hf-sae:summary:start -->")[1]
    for line in body.splitlines():
        spans = re.sub(r"`[^`]*`", "", line)
        assert "<img" not in spans
        assert "](javascript" not in spans
        assert "@all" not in spans
        if line.startswith("|"):
            columns = len(re.findall(r"(?<!\\)\|", line)) - 1
            assert columns in (2, 3, 7), line


def test_the_command_pushes_it_as_a_dataset(plain: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(write(tmp_path / "f"))
    done = plain.cli("push", folder, REPO, "--collection", "My SAEs")
    assert done.returncode == 0, done.stderr
    assert set(plain.hub.repos) == {f"datasets/{REPO}"}
    assert [(i["id"], i["type"]) for c in plain.hub.collections.values() for i in c["items"]] == [(REPO, "dataset")]
    assert done.stdout.strip().splitlines()[-1] == f'Next: load_features("{REPO}") in Python'
    with pytest.raises(SystemExit, match="2"):
        main(["push", folder, REPO, "--subfolder", "a"])
    assert "leave --subfolder out" in " ".join(capsys.readouterr().err.split())


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
with FeatureWriter(sys.argv[1], {"layer_0": SAESource.of(sae)}) as writer:
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
