"""What the local Hub answers about pull requests and collections, one function per route."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.local_hub import TOKEN, USER, Handler, Refused


WHEN = "2026-01-01T00:00:00.000Z"


def merge(h: Handler, kind: str, repo: str, number: str) -> None:
    known = h.repo(kind, repo, write=True)
    if not known.merge(int(number)):
        raise Refused(409, "", "This pull request has conflicts")
    h.json({})


def discuss(h: Handler, kind: str, repo: str) -> None:
    known = h.repo(kind, repo, write=True, propose=True)
    number = len(known.pulls) + 1
    known.pulls[number] = f"refs/pr/{number}", known.branches["main"]
    known.branches[f"refs/pr/{number}"] = known.branches["main"]
    h.json({"title": json.loads(h.body)["title"], "num": number, "pullRequest": {"url": f"{h.hub.url}/{repo}"}})


def discussion(h: Handler, kind: str, repo: str, number: str) -> None:
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


def status(h: Handler, kind: str, repo: str, number: str) -> None:
    known, asked = h.repo(kind, repo, write=True, propose=True), json.loads(h.body)["status"]
    if asked == "closed":
        known.closed.add(int(number))
    now = {"id": "1", "type": "status-change", "createdAt": WHEN, "author": {"name": USER}}
    h.json({"newStatus": {**now, "data": {"status": asked}}})


def collect(h: Handler) -> None:
    if h.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, "", "Invalid credentials")
    asked = json.loads(h.body)
    slug = f"{asked['namespace']}/{re.sub(r'[^a-z0-9]+', '-', asked['title'].lower())}-{'0' * 24}"
    known = slug in h.hub.collections
    h.hub.collections.setdefault(slug, {"slug": slug, "title": asked["title"], "items": []})
    h.json(_collection_facts(h, slug), 409 if known else 200)


def collection(h: Handler, slug: str) -> None:
    if slug not in h.hub.collections:
        raise Refused(404, "", "Collection not found")
    h.json(_collection_facts(h, slug))


def collect_item(h: Handler, slug: str) -> None:
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
