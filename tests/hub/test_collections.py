"""One repo with many autoencoders: one commit, one file to list it, and nobody's work lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tests.hub.test_bad_input import change
from tests.hub.test_round_trip import X, make, pull, push
from tests.local_hub import LocalHub
from tests.local_hub.client import Client


LISTED = """
import json, sys
from hf_sae import load_saes
saes = load_saes(sys.argv[1])
print(json.dumps([sorted(saes), saes.commit]))
"""


def index_of(client: Client, repo: str) -> dict:
    return json.loads(client.hub.files(repo)["config.json"])["index"]


def test_a_listing_reads_one_file_by_three_requests(plain: Client, tmp_path: Path):
    for n in range(6):
        make(tmp_path / "sweep" / f"layer_{n}", n)
    assert plain.cli("push", str(tmp_path / "sweep"), "tester/sweep").returncode == 0
    before = len(plain.hub.requests)
    assert plain.cli("ls", "tester/sweep").returncode == 0
    sha = plain.hub.repos["models/tester/sweep"].branches["main"]
    asked = [line for line in plain.hub.requests[before:] if "agent-harnesses" not in line]
    file = f"/tester/sweep/resolve/{sha}/config.json"
    assert asked == ["GET /api/models/tester/sweep", f"HEAD {file}", f"GET {file}"]
    before = len(plain.hub.requests)
    assert plain.value(LISTED, "tester/sweep", HF_HUB_OFFLINE="1")[1] == sha, "and offline afterwards"
    assert len(plain.hub.requests) == before


def test_the_index_is_found_offline_after_another_load_moved_the_branch(plain: Client, tmp_path: Path):
    for name in "ab":
        make(tmp_path / "sweep" / name)
    plain.cli("push", str(tmp_path / "sweep"), "tester/sweep")
    assert plain.value(LISTED, "tester/sweep")[0] == ["a", "b"]
    first = plain.hub.repos["models/tester/sweep"].branches["main"]
    change(plain, "tester/sweep", **{"notes.txt": b"x"})
    assert pull(plain, "tester/sweep", "a")["commit"] != first
    assert plain.value(LISTED, "tester/sweep", HF_HUB_OFFLINE="1") == [["a", "b"], first]


def test_what_was_removed_or_moved_by_hand_is_so_in_the_listing_and_in_the_next_index(plain: Client, tmp_path: Path):
    for name in ("a", "b", "c"):
        make(tmp_path / "sweep" / name)
    make(tmp_path / "more")
    plain.cli("push", str(tmp_path / "sweep"), "tester/sweep")
    files = plain.hub.files("tester/sweep")
    moved = {name.replace("b/", "moved/"): content for name, content in files.items() if name.startswith("b/")}
    gone = {name: None for name in files if name.startswith(("a/", "b/"))}
    change(plain, "tester/sweep", **gone, **moved)
    assert plain.value(LISTED, "tester/sweep")[0] == ["c", "moved"]
    push(plain, tmp_path / "more", "tester/sweep", subfolder="d")
    assert list(index_of(plain, "tester/sweep")) == ["c", "d"], (
        "what was moved has no entry, and is listed all the same"
    )
    assert plain.value(LISTED, "tester/sweep")[0] == ["c", "d", "moved"]
    assert pull(plain, "tester/sweep", "moved")["bits"]


def test_the_autoencoder_at_the_root_is_listed_beside_those_in_folders(plain: Client, tmp_path: Path):
    make(tmp_path / "a")
    push(plain, tmp_path / "a", "tester/root")
    push(plain, tmp_path / "a", "tester/root", subfolder="other")
    assert plain.value(LISTED, "tester/root")[0] == [".", "other"]


def test_two_who_push_at_once_lose_nothing(tmp_path: Path):
    for name in ("a", "b"):
        make(tmp_path / name, ord(name))
    with LocalHub() as hub, Client(hub, tmp_path / "one") as one, Client(hub, tmp_path / "two") as two:
        make(tmp_path / "first")
        push(one, tmp_path / "first", "tester/both", subfolder="first")
        meet = threading.Barrier(2, action=lambda: setattr(hub, "before_commit", None), timeout=60)
        hub.before_commit = meet.wait  # neither commits before both have read the index
        done = [
            threading.Thread(target=push, args=(client, tmp_path / name, "tester/both"), kwargs={"subfolder": name})
            for client, name in ((one, "a"), (two, "b"))
        ]
        for thread in done:
            thread.start()
        for thread in done:
            thread.join()
        assert list(index_of(one, "tester/both")) == ["a", "b", "first"]
        assert {"a/model.safetensors", "b/model.safetensors"} <= hub.files("tester/both").keys()
        assert sum("/commit/" in line for line in hub.requests) == 4, "one of them had to do it twice"


MANY = """
import json, sys
from hf_sae.hub import push
push.ONE_COMMIT = 4
print(json.dumps(push.push_folder(sys.argv[1], "tester/many")))
"""


def test_a_pull_request_that_main_has_overtaken_is_made_again(tmp_path: Path):
    for n in range(4):
        make(tmp_path / "sweep" / f"layer_{n}", n)
    other = make(tmp_path / "other", 9)
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path / "one") as one, Client(hub, tmp_path / "two") as two:
        push(one, tmp_path / "other", "tester/many", subfolder="first")

        def overtake() -> None:
            hub.before_commit = None
            push(two, tmp_path / "other", "tester/many", subfolder="meanwhile")

        hub.before_commit = overtake
        one.value(MANY, str(tmp_path / "sweep"))
        places = ["first", "layer_0", "layer_1", "layer_2", "layer_3", "meanwhile"]
        assert list(index_of(one, "tester/many")) == places
        assert pull(one, "tester/many", "meanwhile")["bits"] == other(X).reconstruction.tolist()
        assert hub.repos["models/tester/many"].closed == {1}, "the first attempt is not left open"
        assert sum(line.startswith("PUT") for line in hub.requests) == 5, "no weights were sent twice"
