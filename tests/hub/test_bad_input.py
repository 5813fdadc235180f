"""What goes wrong on the way to the Hub and back: a typed error that says what to do, and nothing half done."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

from tests.hub.test_round_trip import PUSH, X, make, pull, push
from tests.local_hub import LocalHub
from tests.local_hub.client import Client


LOAD = """
import json, resource, sys
from hf_sae import AutoSAE
name, options = sys.argv[1], json.loads(sys.argv[2])
if (limit := options.pop("limit", None)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    AutoSAE.from_pretrained(name, **options)
    said = None
except Exception as error:
    said = type(error).__name__, str(error)
print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


DIRECT = """
import sys
from hf_sae.hub import push_folder
push_folder(*sys.argv[1:])
"""


def refused(client: Client, name: str, **options: object) -> str:
    """What a load that has to fail with a typed error says."""
    what = options.pop("what", name)
    said, kilobytes = client.value(LOAD, name, json.dumps(options))
    assert said is not None, f"{what} was loaded"
    assert said[0] in ("CheckpointError", "ConfigError", "ConversionError", "ElsewhereError"), said
    assert kilobytes < 300_000, "a small repo took much memory"
    return said[1]


def error(client: Client, *arguments: str) -> str:
    """What a command that has to fail says; one paragraph, without a traceback."""
    done = client.cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def change(client: Client, repo: str, **files: bytes | None) -> None:
    """Somebody changes files of a repo by hand."""
    known = client.hub.repos[f"models/{repo}"]
    tree = dict(client.hub.files(repo)) | {name: content for name, content in files.items() if content is not None}
    known.commit("main", {name: content for name, content in tree.items() if files.get(name, b"") is not None})


def test_what_there_is_is_said_where_something_else_was_asked_for(plain: Client, tmp_path: Path):
    for n in (3, 7):
        make(tmp_path / "sweep" / f"layer_{n}", n)
    assert plain.cli("push", str(tmp_path / "sweep"), "tester/sweep").returncode == 0
    repo = plain.hub.repos["models/tester/sweep"]
    repo.tags["v1.0"] = repo.branches["main"]
    missing = refused(plain, "tester/sweep", subfolder="layer_33")
    assert "Did you mean 'layer_3'?" in missing
    assert "'layer_3', 'layer_7'" in missing
    missing = refused(plain, "tester/sweep:layer_3", revision="v1.1")
    assert "no such revision: 'v1.1'. Did you mean 'v1.0'? It has 'main', 'v1.0'" in missing
    for verb in (["ls", "tester/sweep"], ["info", "tester/sweep:layer_3"], ["pull", "tester/sweep:layer_3", "x"]):
        assert "'main', 'v1.0'" in error(plain, *verb, "--revision", "v1.1")
    assert "no repo 'tester/swep'" in refused(plain, "tester/swep")
    assert "with subfolder='layer_3'" in refused(plain, "tester/sweep/layer_3")


def test_a_repo_of_another_library_is_named_as_what_it_is(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    push(plain, tmp_path / "sae", "tester/other")
    change(plain, "tester/other", **{"config.json": json.dumps({"model_type": "bert"}).encode()})
    assert "not a checkpoint of hf_sae" in refused(plain, "tester/other")
    assert "bert" in refused(plain, "tester/other")
    change(plain, "tester/other", **{"config.json": None, "model_index.json": b"{}"})
    assert "model_index.json" in refused(plain, "tester/other")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_neither_sent_nor_read(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    push(plain, tmp_path / "sae", "tester/pickled")
    bomb = pickle.dumps(Bomb())
    for name in ("pytorch_model.bin", "model.pt"):
        change(plain, "tester/pickled", **{"model.safetensors": None, "README.md": None, name: bomb})
        assert "pickle" in refused(plain, "tester/pickled").lower()
        change(plain, "tester/pickled", **{name: None})
    assert not list(tmp_path.rglob("exploded"))
    (tmp_path / "sae" / "model.safetensors").rename(tmp_path / "sae" / "pytorch_model.bin")
    assert "pickles are not read" in error(plain, "push", str(tmp_path / "sae"), "tester/none")
    direct = plain.python(DIRECT, str(tmp_path / "sae"), "tester/none").stderr.splitlines()[-1]
    assert "CheckpointError" in direct
    assert "pytorch_model.bin" in direct
    assert "models/tester/none" not in plain.hub.repos, "nothing was created"


def test_links_are_not_followed_and_a_folder_of_them_is_refused(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    (tmp_path / "linked").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "sae" / name)
    said = error(plain, "push", str(tmp_path / "linked"), "tester/none")
    assert "links are not published" in said
    (tmp_path / "linked" / "config.json").unlink()
    (tmp_path / "linked" / "config.json").write_bytes((tmp_path / "sae" / "config.json").read_bytes())
    assert "weights" in error(plain, "push", str(tmp_path / "linked"), "tester/none"), "no config without its weights"
    assert "models/tester/none" not in plain.hub.repos
    (tmp_path / "sae" / "home").symlink_to(Path.home())
    (tmp_path / "sae" / "notes").symlink_to("/etc/passwd")
    done = plain.cli("push", str(tmp_path / "sae"), "tester/some")
    assert done.returncode == 0, done.stderr
    assert "not uploaded" in done.stderr
    assert set(plain.hub.files("tester/some")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def huge_header() -> bytes:
    return struct.pack("<Q", 2**40) + b"{}"


def deep_json(depth: int = 100_000) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def test_hostile_repos_are_refused_in_bounded_memory_and_leave_the_cache_alone(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    push(plain, tmp_path / "sae", "tester/evil")
    good = dict(plain.hub.files("tester/evil"))
    outside = json.dumps({"metadata": {}, "weight_map": {"decoder.bias": "../../../../../../outside.safetensors"}})
    collection = {"model_type": "sae_collection", "index": {"..\\\\up": {}}}
    hostile = {
        "a giant header": {"model.safetensors": huge_header()},
        "a truncated file": {"model.safetensors": good["model.safetensors"][:-8]},
        "a deep config": {"config.json": deep_json()},
        "a config that is a list": {"config.json": b"[1]"},
        "a shard outside": {"model.safetensors": None, "model.safetensors.index.json": outside.encode()},
        "a place outside": {"config.json": json.dumps(collection).encode(), "model.safetensors": None},
        "code of its own": {
            "config.json": json.dumps(
                json.loads(good["config.json"]) | {"model_type": "x", "auto_map": {"AutoModel": "e.X"}}
            ).encode(),
            "e.py": b"open('exploded', 'w')",
        },
    }
    for what, files in hostile.items():
        repo = plain.hub.repos["models/tester/evil"]
        repo.commit("main", good)
        change(plain, "tester/evil", **files)
        assert refused(plain, "tester/evil", what=what)
        assert not list(tmp_path.rglob("outside*")), what
        assert not list(tmp_path.rglob("exploded")), what
    plain.hub.repos["models/tester/evil"].commit(
        "main", good | {"../../up.json": b"{}", "/abs.json": b"{}", "a\\..\\b.json": b"{}"}
    )
    assert pull(plain, "tester/evil")["bits"], "names that are never asked for do no harm"
    assert error(plain, "ls", "tester/evil:../..")
    home = {path.name for path in tmp_path.iterdir()}
    assert home == {"sae", "home"}, "nothing was written outside the cache"


def test_a_disk_that_is_full_leaves_nothing_half_done(plain: Client, tmp_path: Path):
    sae = make(tmp_path / "sae", d_sae=4096)
    push(plain, tmp_path / "sae", "tester/big")
    said = refused(plain, "tester/big", limit=100_000)
    assert "no room for 'tester/big' on the disk" in said
    assert "HF_HOME" in said
    assert not list((plain.home / "hub").rglob("snapshots/*/model.safetensors")), "half a file is no file"
    assert pull(plain, "tester/big")["commit"], "with room it goes on"
    code = """
import json, resource, sys
from hf_sae import AutoSAE
sae = AutoSAE.from_pretrained("tester/big")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    sae.save_pretrained(sys.argv[1])
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    make(tmp_path / "before")
    kept = (tmp_path / "before" / "model.safetensors").read_bytes()
    name, said = plain.value(code, str(tmp_path / "before"))
    assert name == "CheckpointError"
    assert "free space" in said
    assert (tmp_path / "before" / "model.safetensors").read_bytes() == kept
    assert {path.name for path in (tmp_path / "before").iterdir()} == {"config.json", "model.safetensors"}
    assert sae.config.d_sae == 4096


def test_nothing_private_becomes_public(plain: Client, tmp_path: Path):
    make(tmp_path / "sae")
    push(plain, tmp_path / "sae", "tester/open")
    before = len(plain.hub.repos["models/tester/open"].messages)
    assert "exists and is public" in error(plain, "push", str(tmp_path / "sae"), "tester/open", "--private")
    assert len(plain.hub.repos["models/tester/open"].messages) == before
    done = plain.python(PUSH, str(tmp_path / "sae"), "tester/x", "{}", HF_TOKEN="")
    assert "hf auth login" in done.stderr.strip().splitlines()[-1], "no token at all"


def test_a_connection_that_ends_in_the_middle_of_a_file_is_picked_up_again(tmp_path: Path):
    sae = make(tmp_path / "sweep" / "a")
    for n in (1, 2):
        make(tmp_path / "sweep" / f"b{n}", n)
    code = """
import json, sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between attempts
from hf_sae.hub import push_folder
try:
    push_folder(sys.argv[1], "tester/cut")
    print("null")
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path / "home") as client:
        hub.break_after("^PUT /objects/", 1, hang_up=True)
        name, said = client.value(code, str(tmp_path / "sweep"))
        assert name == "OSError"
        assert "broke off" in said
        assert set(hub.files("tester/cut")) == {".gitattributes"}
        assert len(hub.objects) == 1, "one file had arrived"
        hub.broken, before = None, len(hub.requests)
        assert client.value(code, str(tmp_path / "sweep")) is None
        assert sum(line.startswith("PUT") for line in hub.requests[before:]) == 2, "the other two"
        assert pull(client, "tester/cut", "a")["bits"] == sae(X).reconstruction.tolist()
