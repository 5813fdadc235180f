"""The cache of indexes stays within its bounds, and what is open stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hf_sae.features.index import FeatureIndex
from hf_sae.features.search import cache
from hf_sae.features.search.embedders import HashingEmbedder
from hf_sae.features.search.file import STAMP

from .test_index import dataset


def made(folder: Path, number: int) -> Path:
    """A folder that looks like an index, the older the smaller its number."""
    place = folder / f"index{number}"
    place.mkdir(parents=True)
    (place / STAMP).write_text("{}")
    (place / "data").write_bytes(b"x" * 998)
    os.utime(place / STAMP, (1000 + number, 1000 + number))
    return place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_oldest_go_first_by_number_and_by_size(tmp_path: Path):
    places = [made(tmp_path, number) for number in range(5)]
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "other").mkdir()
    assert set(cache.prune(tmp_path, STAMP, most=3)) == set(places[:2])
    assert names(tmp_path) == ["index2", "index3", "index4", "notes.txt", "other"]
    assert cache.prune(tmp_path, STAMP, most_bytes=2000) == [places[2]]
    assert cache.prune(tmp_path, STAMP, most_bytes=1) == [places[3]], "the newest stays"
    assert names(tmp_path) == ["index4", "notes.txt", "other"]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path):
    for name, age in ((".abc-1", 2 * 86_400), (".abc-2", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cache.prune(tmp_path, STAMP)
    assert names(tmp_path) == [".abc-2"]


def test_an_index_that_is_open_stays_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MAX_INDEXES", 1)
    here, data = tmp_path / "cache", dataset(tmp_path / "d")
    first = FeatureIndex.open(data, here)
    second = FeatureIndex.open(data, here, HashingEmbedder(64))
    assert len(names(here)) == 2
    assert first.search("cities")[0].feature == second.search("cities")[0].feature == 3
    first.close()
    second.close()
    with FeatureIndex.open(data, here, HashingEmbedder(32)) as third:
        assert names(here) == [third.store.folder.name]


def test_the_one_that_was_opened_last_counts_as_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MAX_INDEXES", 2)
    here, data, folders = tmp_path / "cache", dataset(tmp_path / "d"), []
    for number, dim in enumerate((16, 32)):
        with FeatureIndex.open(data, here, HashingEmbedder(dim)) as index:
            folders.append(index.store.folder)
        os.utime(folders[-1] / STAMP, (1000 + number,) * 2)
    FeatureIndex.open(data, here, HashingEmbedder(16)).close()
    FeatureIndex.open(data, here, HashingEmbedder(64)).close()
    assert folders[0].exists()
    assert not folders[1].exists()
