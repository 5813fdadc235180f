from __future__ import annotations

import hashlib
import platform

import pytest

from hf_sae.corpus import SPLITS, corpus_info, split_of, stdlib_corpus, stdlib_files
from hf_sae.errors import DataError


def test_the_splits_share_no_file_and_have_all_of_them():
    paths = {split: {path for path, _ in stdlib_files(split)} for split in SPLITS}
    assert not paths["train"] & paths["validation"]
    assert not paths["train"] & paths["test"]
    assert not paths["validation"] & paths["test"]
    assert "json/decoder.py" in set.union(*paths.values())
    assert len(paths["train"]) > 10 * len(paths["test"]) > 0
    assert len(paths["validation"]) > 0


def test_a_file_is_always_on_the_same_side():
    for split in SPLITS:
        for path, _ in stdlib_files(split):
            assert split_of(path) == split
            byte = hashlib.sha256(path.encode()).digest()[0]
            assert split == ("train" if byte < 230 else "validation" if byte < 243 else "test")


def test_files_are_the_sources_in_order():
    files = stdlib_files("validation")
    paths = [path for path, _ in files]
    assert paths == sorted(paths)
    assert not any("site-packages" in path or "__pycache__" in path or path.startswith("test/") for path in paths)
    assert all(text.strip() for _, text in files)


def test_tests_only_on_request():
    assert set(stdlib_files("test")) <= set(stdlib_files("test", include_tests=True))


def test_the_dataset_has_the_same_text():
    dataset = stdlib_corpus("test")
    assert dataset.column_names == ["text", "path"]
    assert tuple(zip(dataset["path"], dataset["text"], strict=True)) == stdlib_files("test")


def test_the_information_identifies_the_text():
    info = corpus_info("test")
    files = stdlib_files("test")
    assert info["files"] == len(files)
    assert info["characters"] == sum(len(text) for _, text in files)
    assert info["python"] == platform.python_version()
    assert info == corpus_info("test")
    assert info["sha256"] != corpus_info("validation")["sha256"]


def test_an_unknown_split():
    with pytest.raises(DataError, match=r"'dev' does not exist.*train, validation, test"):
        stdlib_files("dev")
