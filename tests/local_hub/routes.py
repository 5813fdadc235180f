"""What the local Hub answers, one function per route."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.local_hub import TOKEN, USER, Handler, Refused, Repo, Tree


LFS_SUFFIXES = (".safetensors", ".npz", ".pt", ".bin", ".parquet")
WHEN = "2026-01-01T00:00:00.000Z"


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
    h.json({"url": f"{h.hub.url}/{prefix}{name}", "name": name}, 409 if exists else 200)


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
    known = h.repo(kind, repo, write=True)
    _, tree = h.tree(known, revision)
    out = []
    for file in json.loads(h.body)["files"]:
        mode = "lfs" if h.hub.lfs and file["path"].endswith(LFS_SUFFIXES) else "regular"
        entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if file["path"] in tree:
            entry["oid"] = _oid(tree[file["path"]], mode == "lfs")
        out.append(entry)
    h.json({"files": out})


def _oid(content: bytes, lfs: bool) -> str:
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(h: Handler, kind: str, repo: str, revision: str) -> None:
    known = h.repo(kind, repo, write=True)
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
            if value["oid"] not in h.hub.objects:
                raise Refused(400, "", f"LFS object {value['oid']} was not uploaded")
            tree[value["path"]] = h.hub.objects[value["oid"]]
        elif item["key"] in ("deletedFile", "deletedFolder"):
            gone = value["path"].rstrip("/")
            tree = {p: c for p, c in tree.items() if p != gone and not p.startswith(f"{gone}/")}
    pull = {}
    if h.query.get("create_pr"):
        number = len(known.pulls) + 1
        known.pulls[number] = revision = f"refs/pr/{number}"
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
    refs = [
        {"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in known.branches.items() if "/pr/" not in n
    ]
    h.json({"branches": refs, "tags": [], "converts": []})


def _merge(h: Handler, kind: str, repo: str, number: str) -> None:
    known = h.repo(kind, repo, write=True)
    known.branches["main"] = known.branches[known.pulls[int(number)]]
    h.json({})


def _discuss(h: Handler, kind: str, repo: str) -> None:
    known = h.repo(kind, repo, write=True)
    number = len(known.pulls) + 1
    known.pulls[number] = f"refs/pr/{number}"
    known.branches[f"refs/pr/{number}"] = known.branches["main"]
    h.json({"title": json.loads(h.body)["title"], "num": number, "pullRequest": {"url": f"{h.hub.url}/{repo}"}})


def _discussion(h: Handler, kind: str, repo: str, number: str) -> None:
    h.repo(kind, repo)
    facts = {"title": "t", "num": int(number), "status": "draft", "author": {"name": USER}, "createdAt": WHEN}
    h.json(
        {
            **facts,
            "isPullRequest": True,
            "events": [],
            "changes": {"base": "main"},
            "filesWithConflicts": [],
            "repo": {"name": repo, "type": kind.removesuffix("s")},
        }
    )


def _status(h: Handler, kind: str, repo: str, number: str) -> None:
    h.repo(kind, repo, write=True)
    now = {"id": "1", "type": "status-change", "createdAt": WHEN, "author": {"name": USER}}
    h.json({"newStatus": {**now, "data": {"status": json.loads(h.body)["status"]}}})


def _collect(h: Handler) -> None:
    if h.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, "", "Invalid credentials")
    asked = json.loads(h.body)
    slug = f"{asked['namespace']}/{re.sub(r'[^a-z0-9]+', '-', asked['title'].lower())}-{'0' * 24}"
    known = slug in h.hub.collections
    h.hub.collections.setdefault(slug, {"slug": slug, "title": asked["title"], "items": []})
    h.json(_collection_facts(h, slug), 409 if known else 200)


def _collection(h: Handler, slug: str) -> None:
    if slug not in h.hub.collections:
        raise Refused(404, "", "Collection not found")
    h.json(_collection_facts(h, slug))


def _collect_item(h: Handler, slug: str) -> None:
    item, items = json.loads(h.body)["item"], h.hub.collections[slug]["items"]
    known = any(one["id"] == item["id"] for one in items)
    if not known:
        items.append({"_id": str(len(items)), "position": len(items), **item})
    h.json(_collection_facts(h, slug), 409 if known else 200)


def _collection_facts(h: Handler, slug: str) -> dict[str, Any]:
    fixed = {
        "owner": {"name": USER},
        "lastUpdated": WHEN,
        "position": 0,
        "private": False,
        "theme": "blue",
        "upvotes": 0,
    }
    return {**h.hub.collections[slug], **fixed}


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
    h.json(list(_entries(tree, folder or "", "true" in h.query.get("recursive", []), h.hub.lfs)))


def _entries(tree: Tree, folder: str, recursive: bool, lfs: bool) -> Iterator[dict[str, Any]]:
    prefix, folders = f"{folder}/" if folder else "", set()
    for path, content in sorted(tree.items()):
        inside = path.removeprefix(prefix)
        if not path.startswith(prefix):
            continue
        if "/" in inside and not recursive:
            folders.add(prefix + inside.split("/")[0])
            continue
        big = lfs and path.endswith(LFS_SUFFIXES)
        entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, False)}
        yield entry | ({"lfs": {"oid": _oid(content, True), "size": len(content), "pointerSize": 130}} if big else {})
    yield from ({"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders))


def _resolve(h: Handler, kind: str | None, repo: str, revision: str, path: str) -> None:
    sha, tree = h.tree(h.repo(kind or "models", repo), revision)
    if path not in tree:
        h.send(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=sha)
        return
    big = h.hub.lfs and path.endswith(LFS_SUFFIXES)
    oid = _oid(tree[path], big)
    if big:
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(tree[path]))}
        h.hub.objects[oid] = tree[path]
        h.send(b"", 302, X_Repo_Commit=sha, ETag=f'"{oid}"', Location=f"{h.hub.blobs}/objects/{oid}", **linked)
        return
    _content(h, tree[path], X_Repo_Commit=sha, ETag=f'"{oid}"')


def _content(h: Handler, body: bytes, **facts: str) -> None:
    """A file, or the range of it that was asked for."""
    start = re.match(r"bytes=(\d+)-(\d*)", h.headers.get("Range", ""))
    facts["Accept_Ranges"] = "bytes"
    if start:
        end = int(start[2]) + 1 if start[2] else len(body)
        facts["Content_Range"] = f"bytes {start[1]}-{end - 1}/{len(body)}"
        h.send(body[int(start[1]) : end], 206, **facts)
    else:
        h.send(body, 200, **facts)


def _batch(h: Handler, kind: str | None, repo: str) -> None:
    h.repo(kind or "models", repo, write=True)
    out = []
    for item in json.loads(h.body)["objects"]:
        href = f"{h.hub.url}/objects/{item['oid']}"
        known = item["oid"] in h.hub.objects
        out.append(
            item | ({} if known else {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}})
        )
    h.json({"transfer": "basic", "objects": out})


def _object(h: Handler, oid: str) -> None:
    if h.command == "PUT":
        if hashlib.sha256(h.body).hexdigest() != oid:
            raise Refused(400, "", "the content is not what its hash says")
        h.hub.objects[oid] = h.body
        h.send(b"")
    else:
        _content(h, h.hub.objects[oid], ETag=f'"{oid}"')


def _verify(h: Handler, oid: str) -> None:
    h.json({} if oid in h.hub.objects else {"error": "missing"}, 200 if oid in h.hub.objects else 404)


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
    ("POST", _API + r"/discussions/(?P<number>\d+)/merge", _merge),
    ("POST", _API + r"/discussions/(?P<number>\d+)/status", _status),
    ("POST", _API + r"/discussions", _discuss),
    ("GET", _API + r"/discussions/(?P<number>\d+)", _discussion),
    ("POST", r"/api/collections", _collect),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", _collection),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items?", _collect_item),
    ("GET", _API, _info),
    ("GET", _API + r"/revision/(?P<revision>.+)", _info),
    ("GET", _API + r"/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<folder>.+))?", _list),
    ("GET|HEAD", _WEB + r"/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", _resolve),
    ("POST", _WEB + r"\.git/info/lfs/objects/batch", _batch),
    ("GET|HEAD|PUT", r"/objects/(?P<oid>\w+)", _object),
    ("POST", r"/objects/(?P<oid>\w+)/verify", _verify),
)
