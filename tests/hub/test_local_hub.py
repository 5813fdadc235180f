"""The test double itself: what it says is what the Hub says, and nobody leaves this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.local_hub.client import Client
from tests.local_hub.guard.sitecustomize import OUTSIDE


FAR = "192.0.2.1"  # reserved for documentation: nobody is there
CONNECT = f"import socket; socket.create_connection(('{FAR}', 80), timeout=1)"
REACH = {
    "address": CONNECT,
    "name": "import urllib.request; urllib.request.urlopen('http://example.org')",
    "datagram": f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{FAR}', 53))",
    "swallowed": f"try:\n    {CONNECT}\nexcept BaseException:\n    pass",
    "grandchild": f'import subprocess, sys; subprocess.run([sys.executable, "-c", "{CONNECT}"])',
}


@pytest.mark.parametrize("way", REACH)
def test_a_process_that_leaves_this_machine_is_ended_and_told_of(plain: Client, way: str):
    with pytest.raises(AssertionError, match="SOCKET GUARD"):
        plain.fresh(REACH[way])
    assert plain.log.read_text().strip() in (FAR, "example.org")


def test_a_worker_is_guarded_and_the_hub_is_not_outside(plain: Client):
    code = f"import sys, urllib.request; print(urllib.request.urlopen('{plain.hub.url}/api/nothing'))"
    assert "404" in plain.python(code).stderr
    with pytest.raises(AssertionError, match="SOCKET GUARD"):
        plain.python(CONNECT)
    plain.log.unlink()
    assert plain.python("import sys; sys.exit(97)").returncode == OUTSIDE, "an exit code alone accuses nobody"


def test_this_process_is_guarded(contacted: list[str]):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((FAR, 80), timeout=1)
    assert contacted == [FAR]
    contacted.clear()


MERGE = """
import json
from huggingface_hub import HfApi
api = HfApi()
def put(content, name, **options):
    return api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="tester/x", **options)
api.create_repo("tester/x")
put(b"1", "a")
for name in ("b", "a"):
    put(b"2", name, revision=api.create_pull_request("tester/x", title="t").git_reference)
put(b"3", "a")
api.merge_pull_request("tester/x", 1)
try:
    api.merge_pull_request("tester/x", 2)
except OSError as error:
    print(json.dumps(str(error)))
"""


def test_a_pull_request_is_merged_as_git_does(plain: Client):
    assert "conflicts" in plain.value(MERGE)
    assert {k: v for k, v in plain.hub.files("tester/x").items() if len(k) == 1} == {"a": b"3", "b": b"2"}


PROPOSE = """
import json
from huggingface_hub import HfApi
what = {"path_or_fileobj": b"2", "path_in_repo": "f", "repo_id": "other/x"}
number = HfApi().upload_file(**what, create_pr=True).pr_num
try:
    HfApi().upload_file(**what)
except OSError as error:
    print(json.dumps([number, str(error)]))
"""


def test_who_may_write_where(plain: Client, tmp_path: Path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "f").write_bytes(b"1")
    plain.hub.add("other/x", tmp_path / "files")
    number, refused = plain.value(PROPOSE)
    assert number == 1
    assert "may not write" in refused
    assert plain.hub.files("other/x")["f"] == b"1"
    assert plain.hub.files("other/x", "refs/pr/1")["f"] == b"2"
