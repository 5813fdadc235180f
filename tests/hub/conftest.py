"""A Hub and its user for every test of this folder, and a guard over this process: nothing outside is contacted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_hub import LocalHub
from tests.local_hub.client import Client
from tests.local_hub.guard import sitecustomize as guard


_contacted: list[str] | None = None


def _refuse(host: str) -> None:
    if _contacted is not None:
        _contacted.append(host)
        raise ConnectionRefusedError(f"SOCKET GUARD: {host}")


@pytest.fixture(scope="session")
def watched() -> None:
    """An audit hook can be added once and not taken out again."""
    guard.watch(_refuse)


@pytest.fixture(autouse=True)
def contacted(watched: None) -> Iterator[list[str]]:
    """Hosts outside this machine that the test tried to reach from this process; there may be none."""
    global _contacted
    _contacted = []
    yield _contacted
    found, _contacted = _contacted, None
    assert not found


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Client]:
    """A client of a Hub whose files go inside the commits."""
    with LocalHub() as hub, Client(hub, tmp_path / "home") as client:
        yield client
