"""How the local Hub takes and gives the content of files: inside a commit, through LFS, or through Xet."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.local_hub import Handler, LocalHub, Refused


LFS_SUFFIXES = (".safetensors", ".npz", ".pt", ".bin", ".parquet")


def oid(content: bytes, lfs: bool) -> str:
    """The name of a content: SHA-256 under LFS, else that of git."""
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def facts(hub: LocalHub, content: bytes) -> dict[str, Any]:
    """What a listing says of a large file."""
    digest = oid(content, True)
    lfs = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
    return lfs | ({"xetHash": hub.xet_hashes[digest]} if digest in hub.xet_hashes else {})


def uploaded(h: Handler, digest: str) -> bytes:
    """A content that was sent before the commit that names it."""
    if h.hub.xet is not None and digest not in h.hub.objects:
        content = _from_xet(h.hub, digest)
        if content is not None:
            h.hub.objects[digest] = content
    if digest not in h.hub.objects:
        raise Refused(400, "", f"LFS object {digest} was not uploaded")
    return h.hub.objects[digest]


def resolve(h: Handler, kind: str | None, repo: str, revision: str, path: str) -> None:
    """A file of a repo; of a large one, where it is."""
    sha, tree = h.tree(h.repo(kind or "models", repo), revision)
    if path not in tree:
        h.send(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=sha)
        return
    body, big = tree[path], h.hub.lfs and path.endswith(LFS_SUFFIXES)
    name = oid(body, big)
    if big:
        linked = {"X_Linked_Etag": f'"{name}"', "X_Linked_Size": str(len(body))}
        if name in h.hub.xet_hashes:
            token = f"{h.hub.url}/api/{kind or 'models'}/{repo}/xet-read-token/{sha}"
            linked |= {"X_Xet_Hash": h.hub.xet_hashes[name], "X_Xet_Refresh_Route": token}
        h.hub.objects[name] = body
        h.send(b"", 302, X_Repo_Commit=sha, ETag=f'"{name}"', Location=f"{h.hub.blobs}/objects/{name}", **linked)
        return
    _content(h, body, X_Repo_Commit=sha, ETag=f'"{name}"')


def _content(h: Handler, body: bytes, **headers: str) -> None:
    """A file, or the range of it that was asked for."""
    start = re.match(r"bytes=(\d+)-(\d*)", h.headers.get("Range", ""))
    headers["Accept_Ranges"] = "bytes"
    if start:
        end = int(start[2]) + 1 if start[2] else len(body)
        headers["Content_Range"] = f"bytes {start[1]}-{end - 1}/{len(body)}"
        h.send(body[int(start[1]) : end], 206, **headers)
    else:
        h.send(body, 200, **headers)


def batch(h: Handler, kind: str | None, repo: str) -> None:
    """Where LFS objects go; those that are there need not be sent."""
    h.repo(kind or "models", repo, write=True, propose=True)
    out = []
    for item in json.loads(h.body)["objects"]:
        href = f"{h.hub.url}/objects/{item['oid']}"
        actions = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
        out.append(item | ({} if item["oid"] in h.hub.objects else actions))
    h.json({"transfer": "basic", "objects": out})


def stored(h: Handler, oid: str) -> None:
    """An LFS object comes or goes."""
    if h.command == "PUT":
        if hashlib.sha256(h.body).hexdigest() != oid:
            raise Refused(400, "", "the content is not what its hash says")
        h.hub.objects[oid] = h.body
        h.send(b"")
    else:
        _content(h, h.hub.objects[oid], ETag=f'"{oid}"')


def verify(h: Handler, oid: str) -> None:
    """Whether an LFS object has arrived."""
    h.json({} if oid in h.hub.objects else {"error": "missing"}, 200 if oid in h.hub.objects else 404)


def xet_token(h: Handler, kind: str, repo: str, revision: str) -> None:
    """Where Xet's storage service is: hf-xet takes a folder for one."""
    if h.hub.xet is None:
        raise Refused(404, "", "no Xet here")
    h.repo(kind, repo, write="xet-write" in h.path_only, propose=True)
    place, expires = f"local://{h.hub.xet}", int(time.time()) + 3600
    body = json.dumps({"casUrl": place, "accessToken": "x", "exp": expires}).encode()
    h.send(
        body,
        200,
        Content_Type="application/json",
        X_Xet_Cas_Url=place,
        X_Xet_Access_Token="x",
        X_Xet_Token_Expiration=str(expires),
    )


def xet_hash(path: Path) -> str:
    """The name that Xet gives to the content of a file."""
    import hf_xet

    return hf_xet.hash_files([str(path)])[0].hash


def _from_xet(hub: LocalHub, digest: str) -> bytes | None:
    """What was sent to the storage service, where the Hub knows what Xet calls it."""
    import hf_xet

    if digest not in hub.xet_hashes:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{hub.xet}") as group:
            group.start_download_file(hf_xet.XetFileInfo(hub.xet_hashes[digest], None), str(path))
        content = path.read_bytes()
    return content if oid(content, True) == digest else None
