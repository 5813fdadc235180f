"""What the local Hub answers, one function per route."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.local_hub import TOKEN, USER, Handler, LocalHub, Refused, Repo, Tree, social, storage
from tests.local_hub.social import WHEN
from tests.local_hub.storage import LFS_SUFFIXES, oid, uploaded


def _whoami(h: Handler) -> None:
    if h.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, "", "Invalid credentials")
    h.json({"name": USER, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write", "displayName": "t"}}})


def _create(h: Handler) -> None:
    if h.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, "", "Invalid credentials")
    asked = json.loads(h.body)
    kind = f"{asked.get('type') or 'model'}s"
    owner = asked.get("organization") or USER
    if owner != USER:
        raise Refused(403, "", f"you may not write to {owner}")
    name, prefix = f"{owner}/{asked['name']}", "" if kind == "models" else f"{kind}/"
    exists = f"{kind}/{name}" in h.hub.repos
    if not exists:
        repo = h.hub.repos[f"{kind}/{name}"] = Repo(
            private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        repo.commit("main", {".gitattributes": b""}, "initial commit")
        repo.sdk = asked.get("sdk")
        if kind == "spaces" and repo.sdk is None:
            raise Refused(400, "", "a Space needs an sdk")
    h.json({"url": f"{h.hub.url}/{prefix}{name}", "name": name}, 409 if exists else 200)


def _variables(h: Handler, repo: str) -> None:
    known = h.repo("spaces", repo, write=True)
    asked = json.loads(h.body or b"{}")
    if h.command == "POST":
        known.variables[asked["key"]] = asked["value"]
    elif h.command == "DELETE":
        known.variables.pop(asked["key"], None)
    h.json({name: {"value": value, "updatedAt": WHEN} for name, value in known.variables.items()})


def _delete(h: Handler) -> None:
    asked = json.loads(h.body)
    h.hub.repos.pop(f"{asked.get('type') or 'model'}s/{asked.get('organization') or USER}/{asked['name']}", None)
    h.json({})


def _validate(h: Handler) -> None:
    head = re.match(r"---\n(.*?)\n---", json.loads(h.body)["content"], re.S)
    try:
        data = yaml.safe_load(head[1]) if head else {}
        errors = [] if isinstance(data, dict) else [{"message": "the header is no mapping"}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    errors += [{"message": h.hub.refuse_cards}] if h.hub.refuse_cards else []
    h.json({"errors": errors, "warnings": []}, 400 if errors else 200)


def _preupload(h: Handler, kind: str, repo: str, revision: str) -> None:
    known = h.repo(kind, repo, write=True, propose="create_pr" in h.query or "/pr/" in revision)
    _, tree = h.tree(known, revision)
    out = []
    for file in json.loads(h.body)["files"]:
        mode = "lfs" if h.hub.lfs and file["path"].endswith(LFS_SUFFIXES) else "regular"
        entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if file["path"] in tree:
            entry["oid"] = oid(tree[file["path"]], mode == "lfs")
        out.append(entry)
    h.json({"files": out})


def _commit(h: Handler, kind: str, repo: str, revision: str) -> None:
    known = h.repo(kind, repo, write=True, propose="create_pr" in h.query or "/pr/" in revision)
    if h.hub.before_commit is not None:
        h.hub.before_commit()
    parent, before = h.tree(known, revision)
    tree, title = dict(before), ""
    for line in h.body.decode().splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, parent) and "create_pr" not in h.query:
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        elif item["key"] == "file":
            tree[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            tree[value["path"]] = uploaded(h, value["oid"])
        elif item["key"] in ("deletedFile", "deletedFolder"):
            gone = value["path"].rstrip("/")
            tree = {p: c for p, c in tree.items() if p != gone and not p.startswith(f"{gone}/")}
    pull = {}
    if h.query.get("create_pr"):
        number = len(known.pulls) + 1
        revision = f"refs/pr/{number}"
        known.pulls[number] = revision, parent
        pull = {"pullRequestUrl": f"{h.hub.url}/{repo}/discussions/{number}"}
    sha = known.commit(revision, tree, title)
    h.json({"success": True, "commitOid": sha, "commitUrl": f"{h.hub.url}/{repo}/commit/{sha}", **pull})


def _branch(h: Handler, kind: str, repo: str, branch: str) -> None:
    known = h.repo(kind, repo, write=True)
    if h.command == "DELETE":
        known.branches.pop(branch, None)
    elif branch in known.branches:
        raise Refused(409, "", "Reference already exists")
    else:
        known.branches[branch] = h.tree(known, json.loads(h.body or b"{}").get("startingPoint") or "main")[0]
    h.json({})


def _refs(h: Handler, kind: str, repo: str) -> None:
    known = h.repo(kind, repo)
    branches = {name: sha for name, sha in known.branches.items() if "/pr/" not in name}
    refs = {
        key: [{"name": name, "ref": f"refs/{part}/{name}", "targetCommit": sha} for name, sha in names.items()]
        for key, part, names in (("branches", "heads", branches), ("tags", "tags", known.tags))
    }
    h.json({**refs, "converts": []})


def _info(h: Handler, kind: str, repo: str, revision: str = "main") -> None:
    known = h.repo(kind, repo)
    sha, tree = h.tree(known, revision)
    siblings = [{"rfilename": path, "size": len(content)} for path, content in sorted(tree.items())]
    facts = {"private": known.private, "gated": known.gated, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    h.json(
        {
            "id": repo,
            "modelId": repo,
            "sha": sha,
            "siblings": siblings,
            "lastModified": WHEN,
            "createdAt": WHEN,
            **facts,
        }
    )


def _list(h: Handler, kind: str, repo: str, revision: str, folder: str | None) -> None:
    _, tree = h.tree(h.repo(kind, repo), revision)
    h.json(list(_entries(h.hub, tree, folder or "", "true" in h.query.get("recursive", []))))


def _entries(hub: LocalHub, tree: Tree, folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    prefix, folders = f"{folder}/" if folder else "", set()
    for path, content in sorted(tree.items()):
        inside = path.removeprefix(prefix)
        if not path.startswith(prefix):
            continue
        if "/" in inside and not recursive:
            folders.add(prefix + inside.split("/")[0])
            continue
        big = hub.lfs and path.endswith(LFS_SUFFIXES)
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid(content, False)}
        yield entry | (storage.facts(hub, content) if big else {})
    yield from ({"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders))


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
_WEB = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", _whoami),
    ("POST", r"/api/repos/create", _create),
    ("DELETE", r"/api/repos/delete", _delete),
    ("POST", r"/api/validate-yaml", _validate),
    ("POST", _API + r"/preupload/(?P<revision>.+)", _preupload),
    ("POST", _API + r"/commit/(?P<revision>.+)", _commit),
    ("POST|DELETE", _API + r"/branch/(?P<branch>.+)", _branch),
    ("GET", _API + r"/refs", _refs),
    ("POST", _API + r"/discussions/(?P<number>\d+)/merge", social.merge),
    ("POST", _API + r"/discussions/(?P<number>\d+)/status", social.status),
    ("POST", _API + r"/discussions", social.discuss),
    ("GET", _API + r"/discussions/(?P<number>\d+)", social.discussion),
    ("POST", r"/api/collections", social.collect),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", social.collection),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items?", social.collect_item),
    ("GET|POST|DELETE", r"/api/spaces/(?P<repo>[^/]+/[^/]+)/variables", _variables),
    ("GET", _API, _info),
    ("GET", _API + r"/revision/(?P<revision>.+)", _info),
    ("GET", _API + r"/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<folder>.+))?", _list),
    ("GET|HEAD", _WEB + r"/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", storage.resolve),
    ("POST", _WEB + r"\.git/info/lfs/objects/batch", storage.batch),
    ("GET|HEAD|PUT", r"/objects/(?P<oid>\w+)", storage.stored),
    ("POST", r"/objects/(?P<oid>\w+)/verify", storage.verify),
    ("GET", _API + r"/xet-(?:read|write)-token/(?P<revision>.+)", storage.xet_token),
)
