"""Push and pull over the wire: the same bits in a fresh process, whole or not at all, with a card that is ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from hf_sae.models import AutoSAE, TopKConfig, TopKSAE
from tests.local_hub import TOKEN, LocalHub
from tests.local_hub.client import Client


X = torch.linspace(-1, 1, 32).view(4, 8)
PULL = """
import json, sys, torch
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1], subfolder=sys.argv[2], **json.loads(sys.argv[3]))
x = torch.linspace(-1, 1, 32).view(4, 8)
print(json.dumps({"bits": sae(x).reconstruction.tolist(), "commit": sae.config._commit_hash, "dtype": str(sae.dtype)}))
"""
PUSH = """
import json, sys
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1])
print(json.dumps(sae.push_to_hub(sys.argv[2], **json.loads(sys.argv[3]))))
"""


def make(folder: Path, seed: int = 0, **fields: object) -> TopKSAE:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKConfig(**{"d_in": 8, "d_sae": 16, "k": 3, "hook_in": "resid_post.0"} | fields)).eval()
    sae.save_pretrained(folder)
    return sae


@pytest.fixture(params=[False, True], ids=["regular", "lfs"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    with LocalHub(lfs=request.param) as hub, Client(hub, tmp_path / "home") as running:
        yield running


def push(client: Client, folder: Path, repo: str, **options: object) -> str:
    return client.value(PUSH, str(folder), repo, json.dumps(options))


def pull(client: Client, repo: str, subfolder: str = "", **options: object) -> dict:
    return client.value(PULL, repo, subfolder, json.dumps(options))


def test_what_was_pushed_comes_back_to_the_bit(client: Client, tmp_path: Path):
    sae = make(tmp_path / "sae")
    url = push(client, tmp_path / "sae", "tester/one", private=True)
    assert url.startswith(client.hub.url)
    assert client.hub.repos["models/tester/one"].private
    assert client.hub.repos["models/tester/one"].messages == ["initial commit", "Upload autoencoder with hf-sae"]
    found = pull(client, "tester/one")
    assert found["bits"] == sae(X).reconstruction.tolist()
    assert found["commit"] == client.hub.repos["models/tester/one"].branches["main"]
    card = client.hub.files("tester/one")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "hf-sae"
    assert 'AutoSAE.from_pretrained("tester/one")' in card
    assert set(client.hub.files("tester/one")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def test_a_sweep_goes_up_in_one_commit_and_is_listed_from_one_file(client: Client, tmp_path: Path):
    saes = {
        f"layer_{n}": make(tmp_path / "sweep" / f"layer_{n}", n, hook_in=f"resid_post.{n}")
        for n in (10, 2, 1, 4, 5, 6)
    }
    done = client.cli("push", str(tmp_path / "sweep"), "tester/sweep")
    assert done.returncode == 0, done.stderr
    repo = client.hub.repos["models/tester/sweep"]
    assert len(repo.messages) == 2, "one commit after the first, empty one"
    index = json.loads(client.hub.files("tester/sweep")["config.json"])
    assert index["model_type"] == "sae_collection"
    assert list(index["index"]) == ["layer_1", "layer_2", "layer_4", "layer_5", "layer_6", "layer_10"]
    assert index["index"]["layer_10"]["hook_in"] == "resid_post.10"
    before = len(client.hub.downloads())
    listed = client.cli("ls", "tester/sweep", "--json")
    assert [entry["place"] for entry in json.loads(listed.stdout)["autoencoders"]] == list(index["index"])
    assert set(client.hub.downloads()[before:]) == {"config.json"}
    code = """
import json, sys, torch
from hf_sae import load_saes
saes = load_saes("tester/sweep")
print(json.dumps([len(saes), saes["layer_4"](torch.linspace(-1, 1, 32).view(4, 8)).reconstruction.tolist(), saes.commit]))
"""
    before = len(client.hub.downloads())
    number, bits, commit = client.value(code)
    assert (number, bits, commit) == (6, saes["layer_4"](X).reconstruction.tolist(), repo.branches["main"])
    assert {name.split("/")[0] for name in client.hub.downloads()[before:]} <= {"config.json", "layer_4"}


def test_one_more_autoencoder_joins_the_index_and_own_text_of_the_card_stays(plain: Client, tmp_path: Path):
    make(tmp_path / "a")
    make(tmp_path / "b", 1)
    push(plain, tmp_path / "a", "tester/two", subfolder="a")
    assert list(json.loads(plain.hub.files("tester/two")["config.json"])["index"]) == ["a"]
    tree = dict(plain.hub.files("tester/two"))
    tree["README.md"] += b"\nMy own words.\n"
    plain.hub.repos["models/tester/two"].commit("main", tree)
    push(plain, tmp_path / "b", "tester/two", subfolder="b")
    assert list(json.loads(plain.hub.files("tester/two")["config.json"])["index"]) == ["a", "b"]
    card = plain.hub.files("tester/two")["README.md"].decode()
    assert "My own words." in card
    assert "2 autoencoders" in card
    root = plain.python(PULL, "tester/two", "", "{}")
    assert root.returncode != 0
    assert "'a', 'b'" in root.stderr, "a collection has no autoencoder at its root"


def test_the_root_of_a_single_autoencoder_and_a_card_by_hand_are_left_alone(plain: Client, tmp_path: Path):
    make(tmp_path / "a")
    push(plain, tmp_path / "a", "tester/root")
    tree = dict(plain.hub.files("tester/root")) | {"README.md": b"# By hand\n"}
    plain.hub.repos["models/tester/root"].commit("main", tree)
    push(plain, tmp_path / "a", "tester/root", subfolder="other")
    now = plain.hub.files("tester/root")
    assert json.loads(now["config.json"])["model_type"] == "hf_sae_topk"
    assert now["README.md"] == b"# By hand\n"


def test_a_pull_request_and_a_branch(plain: Client, tmp_path: Path):
    sae = make(tmp_path / "sae")
    push(plain, tmp_path / "sae", "tester/pr")
    make(tmp_path / "new", 5)
    assert push(plain, tmp_path / "new", "tester/pr", create_pr=True).endswith("/discussions/1")
    assert pull(plain, "tester/pr")["bits"] == sae(X).reconstruction.tolist(), "main is as it was"
    proposed = pull(plain, "tester/pr", revision="refs/pr/1")
    assert proposed["bits"] == AutoSAE.from_pretrained(tmp_path / "new")(X).reconstruction.tolist()
    push(plain, tmp_path / "new", "tester/pr", revision="dev")
    assert pull(plain, "tester/pr", revision="dev")["bits"] == proposed["bits"]


def test_many_files_go_to_a_pull_request_that_is_merged_when_whole(plain: Client, tmp_path: Path):
    for n in range(6):
        make(tmp_path / "sweep" / f"layer_{n}", n)
    code = """
import json, sys
from hf_sae.hub import push
push.ONE_COMMIT = 4
print(json.dumps(push.push_folder(sys.argv[1], "tester/many")))
"""
    plain.hub.break_after("/commit/", 2)
    cut = plain.python(code, str(tmp_path / "sweep"))
    assert cut.returncode != 0
    assert set(plain.hub.files("tester/many")) == {".gitattributes"}, "half an upload is not to be seen"
    plain.hub.broken = None
    plain.value(code, str(tmp_path / "sweep"))
    assert len(json.loads(plain.hub.files("tester/many")["config.json"])["index"]) == 6
    assert pull(plain, "tester/many", "layer_3")["bits"]


def test_an_upload_that_was_cut_off_is_completed_by_running_it_again(tmp_path: Path):
    sae = make(tmp_path / "sae")
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path / "home") as client:
        hub.break_after("/commit/", 0)
        cut = client.python(PUSH, str(tmp_path / "sae"), "tester/cut", "{}")
        assert cut.returncode != 0
        assert set(hub.files("tester/cut")) == {".gitattributes"}
        hub.broken = None
        push(client, tmp_path / "sae", "tester/cut")
        assert pull(client, "tester/cut")["bits"] == sae(X).reconstruction.tolist()
        assert sum(line.startswith("PUT") for line in hub.requests) == 1, "the weights were not sent twice"


def test_training_state_pickles_links_and_hidden_files_stay_at_home(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    for name in ("optimizer.safetensors", "trainer_state.json", "secret.pt", ".env", "notes.txt"):
        (tmp_path / "sae" / name).write_text("x")
    (tmp_path / "sae" / "passwd").symlink_to("/etc/passwd")
    (tmp_path / "sae" / "checkpoint-5").mkdir()
    (tmp_path / "sae" / "checkpoint-5" / "config.json").write_text("{}")
    assert plain.cli("push", str(tmp_path / "sae"), "tester/clean").returncode == 0
    kept = {".gitattributes", "README.md", "config.json", "model.safetensors", "notes.txt"}
    assert set(plain.hub.files("tester/clean")) == kept


def test_the_command_pushes_into_a_subfolder_with_a_card_that_names_it(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    arguments = ["push", str(tmp_path / "sae"), "tester/name", "--subfolder", "layer_1", "--private", "--json"]
    done = plain.cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"url"}
    assert json.loads(done.stdout)["url"].startswith(plain.hub.url)
    assert plain.hub.repos["models/tester/name"].private
    card = plain.hub.files("tester/name")["layer_1/README.md"].decode()
    assert 'AutoSAE.from_pretrained("tester/name", subfolder="layer_1")' in card


def test_options_of_saving_and_loading_travel(plain: Client, tmp_path: Path):
    sae = make(tmp_path / "sae", d_sae=64)
    push(plain, tmp_path / "sae", "tester/shards", max_shard_size="2KB")
    files = plain.hub.files("tester/shards")
    assert "model.safetensors.index.json" in files
    assert pull(plain, "tester/shards")["bits"] == sae(X).reconstruction.tolist()
    push(plain, tmp_path / "sae", "tester/variant", variant="fp32")
    assert "model.fp32.safetensors" in plain.hub.files("tester/variant")
    assert pull(plain, "tester/variant", variant="fp32")["bits"] == sae(X).reconstruction.tolist()
    mapped = plain.python(PULL, "tester/shards", "", json.dumps({"dtype": "bfloat16", "device_map": "cpu"}))
    assert '"torch.bfloat16"' in mapped.stdout, mapped.stderr


def test_errors_say_what_to_do(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")

    def error(repo: str, options: str = "{}", **variables: str) -> str:
        done = plain.python(PUSH, str(tmp_path / "sae"), repo, options, **variables)
        assert done.returncode != 0
        return done.stderr.strip().splitlines()[-1]

    assert "hf auth login" in error("tester/x", HF_TOKEN="hf_wrong")
    assert "may not write there" in error("somebody/x")
    assert "did you mean 'tester/x'" in error("tester/x/layer_8")
    assert "no repo id" in error("tester/..x")
    plain.hub.refuse_cards = "an unknown licence"
    assert "an unknown licence" in error("tester/yaml")
    plain.hub.refuse_cards = None
    assert "cannot be reached" in error("tester/x", HF_ENDPOINT="http://127.0.0.1:9")


def test_a_collection_of_the_hub_lists_a_repo_once(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    for _ in range(2):
        done = plain.cli("push", str(tmp_path / "sae"), "tester/one", "--collection", "My SAEs")
        assert done.returncode == 0, done.stderr
    (collection,) = plain.hub.collections.values()
    assert (collection["title"], [item["id"] for item in collection["items"]]) == ("My SAEs", ["tester/one"])


def test_pull_and_ls_of_a_folder_and_of_what_does_not_exist(plain: Client, tmp_path: Path):
    sae = make(tmp_path / "sweep" / "a")
    make(tmp_path / "sweep" / "b", 1)
    assert plain.cli("push", str(tmp_path / "sweep"), "tester/sweep").returncode == 0
    done = plain.cli("pull", "tester/sweep", str(tmp_path / "back"), "--subfolder", "a")
    assert done.returncode == 0, done.stderr
    assert torch.equal(AutoSAE.from_pretrained(tmp_path / "back")(X).reconstruction, sae(X).reconstruction)
    local = plain.cli("ls", str(tmp_path / "sweep"))
    assert local.returncode == 0, local.stderr
    assert [line.split()[0] for line in local.stdout.splitlines()[1:3]] == ["a", "b"]
    missing = plain.cli("ls", "tester/none")
    assert missing.returncode == 2
    assert "no repo 'tester/none'" in missing.stderr
    hostile = {"model_type": "sae_collection", "index": {"../outside": {}}}
    plain.hub.repos["models/tester/sweep"].commit("main", {"config.json": json.dumps(hostile).encode()})
    refused = plain.cli("ls", "tester/sweep")
    assert refused.returncode == 2
    assert "leads out of" in refused.stderr


def test_saving_may_push_and_the_token_is_never_said(plain: Client, tmp_path: Path):
    sae = make(tmp_path / "sae")
    code = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained(sys.argv[1])
sae.save_pretrained(sys.argv[1] + "-2", push_to_hub=True, repo_id="tester/saved", token=sys.argv[2], private=True)
"""
    done = plain.python(code, str(tmp_path / "sae"), TOKEN, HF_TOKEN="hf_another")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert (tmp_path / "sae-2" / "model.safetensors").is_file()
    assert plain.hub.repos["models/tester/saved"].private
    assert pull(plain, "tester/saved")["bits"] == sae(X).reconstruction.tolist()
    assert not any(TOKEN.encode() in content for content in plain.hub.files("tester/saved").values())


ADAPT = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from hf_sae import AutoSAE
base = AutoSAE.from_pretrained("tester/base", subfolder="layer_0")
model = get_peft_model(base, LoraConfig(target_modules=["encoder"], r=2, init_lora_weights=False))
base.eval().push_to_hub("tester/adapter")
print(json.dumps(base(torch.linspace(-1, 1, 32).view(4, 8)).reconstruction.tolist()))
"""


def test_an_adapter_repo_finds_its_base_at_the_commit_it_was_made_on(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    push(plain, tmp_path / "sae", "tester/base", subfolder="layer_0")
    expected = plain.value(ADAPT)
    assert "model.safetensors" not in plain.hub.files("tester/adapter")
    make(tmp_path / "other", 7)
    push(plain, tmp_path / "other", "tester/base", subfolder="layer_0")
    assert pull(plain, "tester/adapter")["bits"] == expected, "the base moved on, the adapter's did not"
    assert "tester/base" in plain.hub.files("tester/adapter")["README.md"].decode()
