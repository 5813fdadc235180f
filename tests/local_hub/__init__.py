"""A Hugging Face Hub on loopback, for tests: repos, commits, branches, pull requests, LFS, Xet, downloads. Standard library only.

What requests look like was captured from huggingface_hub 2.4. Its constants are read at import, so clients run in
subprocesses with `LocalHub.environment()`; `HfApi(endpoint=hub.url, token=…)` works in this process.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


USER, TOKEN = "tester", "hf_local_test_token"
Tree = dict[str, bytes]


@dataclass
class Repo:
    """Commits are whole trees; a branch is a name for one of them."""

    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, tuple[str, str]] = field(default_factory=dict)  # reference, and the commit it began at
    closed: set[int] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False
    sdk: str | None = None  # of a Space
    variables: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree, message: str = "commit") -> str:
        """Puts a tree on a branch and returns its commit."""
        sha = hashlib.sha1(f"{len(self.commits)}{branch}{sorted(tree)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = tree, sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag, a commit, or the start of one."""
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        return next((sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)), None)

    def merge(self, number: int) -> bool:
        """Puts what a pull request changed on main, as git does; `False` where main has changed the same files."""
        reference, base = self.pulls[number]
        old, ours, theirs = (self.commits[sha] for sha in (base, self.branches["main"], self.branches[reference]))
        changed = {path for path in {*old, *theirs} if old.get(path) != theirs.get(path)}
        if any(ours.get(path) != old.get(path) for path in changed):
            return False
        tree = {path: content for path, content in ours.items() if path not in changed}
        self.commit("main", tree | {path: theirs[path] for path in changed if path in theirs}, "merge")
        return True


_PORTS: list[int] = []  # of Hubs that have ended, for the next one: see `workers.py`


def _listening(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    while _PORTS:
        try:
            return ThreadingHTTPServer(("127.0.0.1", _PORTS.pop()), handler)
        except OSError:  # somebody else has taken it
            continue
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


class LocalHub:
    """The server; `with LocalHub() as hub`.

    Args:
        lfs (`bool`): large kinds of file go through LFS, as on the real Hub with Xet switched off.
        xet (`Path`, *optional*): large kinds of file go through Xet, with this folder as its storage service.
    """

    def __init__(self, lfs: bool = False, xet: Path | None = None) -> None:
        self.lfs, self.xet = lfs or xet is not None, xet
        self.xet_hashes: dict[str, str] = {}  # by SHA-256
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.collections: dict[str, dict[str, Any]] = {}
        self.broken: re.Pattern[str] | None = None  # requests that match are answered with 500
        self.spared = 0  # so many of them are answered first
        self.hang_up = False  # they get no answer at all: the connection ends in the middle of what they send
        self.before_commit: Callable[[], object] | None = None  # something else happens first
        self.refuse_cards: str | None = None  # what the Hub says of every card's header
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = _listening(handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.blobs = self.url.replace("127.0.0.1", "localhost")  # another host, as the real one's file servers are

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        _PORTS.append(self.server.server_address[1])

    def environment(self, home: Path, **extra: str) -> dict[str, str]:
        """Variables for a subprocess that knows this Hub only.

        Where the Hub asks for regular files, hf-xet is on, as with everybody: it has nothing to do.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": str(int(self.lfs and self.xet is None)),
            "HF_HUB_OFFLINE": "0",
            **extra,
        }

    def add(self, repo_id: str, folder: Path, kind: str = "models", branch: str = "main", **options: bool) -> str:
        """Puts a folder into a repo, as somebody else's upload, and returns the commit."""
        repo = self.repos.setdefault(f"{kind}/{repo_id}", Repo(**options))
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return repo.commit(branch, files)

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> Tree:
        """What a repo holds."""
        repo = self.repos[f"{kind}/{repo_id}"]
        return repo.commits[str(repo.resolve(revision))]

    def break_after(self, pattern: str, spared: int, hang_up: bool = False) -> None:
        """Requests that match are answered with 500, or cut off half-way, once so many of them were served."""
        self.broken, self.spared, self.hang_up = re.compile(pattern), spared, hang_up

    def fails(self, line: str) -> bool:
        """Whether this request is one of those."""
        if self.broken is None or not self.broken.search(line):
            return False
        self.spared -= 1
        return self.spared < 0

    def expect(self, path: Path) -> None:
        """Tells the Hub what Xet calls a file that will be pushed: no commit says it, the real one asks its storage."""
        from tests.local_hub.storage import oid, xet_hash

        self.xet_hashes[oid(path.read_bytes(), True)] = xet_hash(path)

    def downloads(self) -> list[str]:
        """Paths of the files that were fetched so far."""
        return [
            r.split("/resolve/")[1].partition("/")[2]
            for r in self.requests
            if r.startswith("GET") and "/resolve/" in r
        ]


class Refused(Exception):  # noqa: N818
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        line, size = f"{self.command} {self.path_only}", int(self.headers.get("Content-Length") or 0)
        self.hub.requests.append(line)
        fails = self.hub.fails(line)
        self.body = self.rfile.read(size // 2 if fails and self.hub.hang_up else size)
        if fails and self.hub.hang_up:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            if fails:
                raise Refused(500, "", "broken on purpose")
            from tests.local_hub.routes import ROUTES

            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, self.path_only)
                if match and self.command in method.split("|"):
                    action(self, **match.groupdict())
                    return
            raise Refused(404, "", f"no route for {line}")
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)} if refused.code else {}
            self.send(json.dumps({"error": str(refused)}).encode(), refused.status, **headers)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        """One answer; underscores in header names are hyphens."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200) -> None:
        """A JSON answer."""
        self.send(json.dumps(value).encode(), status, Content_Type="application/json")

    def repo(self, kind: str, repo: str, write: bool = False, propose: bool = False) -> Repo:
        """The repo, where it may be seen and, with `write`, changed: its owner may, and everybody may `propose` a change."""
        known = self.hub.repos.get(f"{kind}/{repo}")
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if known is None or (known.private and not allowed):
            raise Refused(404 if allowed else 401, "RepoNotFound", "Repository not found")
        if known.gated:
            raise Refused(403, "GatedRepo", f"Access to {repo} is restricted")
        if write and not allowed:
            raise Refused(401, "", "Invalid credentials")
        if write and not propose and repo.split("/")[0] != USER:
            raise Refused(403, "", f"you may not write to {repo}")
        return known

    def tree(self, known: Repo, revision: str) -> tuple[str, Tree]:
        """Commit and files of a revision."""
        sha = known.resolve(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, known.commits[sha]
