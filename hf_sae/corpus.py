"""The standard-library corpus: real text that every Python installation already has.

* The same file is always in the same split, on every machine: the split is a hash of its relative path.
* `corpus_info` says which Python and which exact text a figure was measured on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import DataError


if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "validation", "test"]
NAME = "python-standard-library"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}
_TESTS = {"test", "tests", "idle_test"}


def split_of(relative_path: str) -> Split:
    """The split a file belongs to: 90 % train, 5 % validation, 5 % test, by a hash of its `/`-separated path."""
    bucket = hashlib.sha256(relative_path.encode()).digest()[0]
    if bucket < 230:
        return "train"
    return "validation" if bucket < 243 else "test"


def _sources(split: Split, include_tests: bool) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = _NOT_STDLIB if include_tests else _NOT_STDLIB | _TESTS
    found = []
    for folder, inside, names in os.walk(root):
        # not walked through: installed packages are far more files than the library
        inside[:] = [name for name in inside if name not in left_out]
        place = Path(folder).relative_to(root)
        found += [(place / name).as_posix() for name in names if name.endswith(".py")]
    for relative in sorted(found):
        if split_of(relative) != split:
            continue
        try:
            text = (root / relative).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a few files are latin-1 on purpose (they test the decoder): they are not text for us
        if text.strip():
            yield relative, text


@lru_cache(maxsize=6)
def stdlib_files(split: Split = "train", *, include_tests: bool = False) -> tuple[tuple[str, str], ...]:
    """The `(relative path, source text)` pairs of one split, in path order.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        include_tests (`bool`, *optional*, defaults to `False`):
            Also yield the test packages, which some distributions leave out of their Python.

    Raises:
        DataError: if `split` is unknown or this Python ships no source files.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} does not exist: the standard-library corpus has {', '.join(SPLITS)}.")
    files = tuple(_sources(split, include_tests))
    if not files:
        raise DataError(
            f"no standard-library sources under {sysconfig.get_paths()['stdlib']!r}. "
            "This Python ships without them (a zipped or frozen build): pass a dataset of your own."
        )
    return files


def stdlib_corpus(split: Split = "train", *, include_tests: bool = False) -> Dataset:
    """The split as a `datasets.Dataset` with the columns `text` and `path`; arguments as in [`stdlib_files`]."""
    from datasets import Dataset, DatasetInfo, NamedSplit

    files = stdlib_files(split, include_tests=include_tests)
    columns = {"text": [text for _, text in files], "path": [path for path, _ in files]}
    return Dataset.from_dict(columns, info=DatasetInfo(dataset_name=NAME), split=NamedSplit(split))


def corpus_info(split: Split = "train", *, include_tests: bool = False) -> dict[str, str | int]:
    """What identifies the text: `name`, `split`, `python`, number of files and characters, `sha256`."""
    digest, characters = hashlib.sha256(), 0
    files = stdlib_files(split, include_tests=include_tests)
    for path, text in files:
        digest.update(path.encode() + b"\0" + text.encode() + b"\0")
        characters += len(text)
    return {
        "name": NAME,
        "split": split,
        "python": platform.python_version(),
        "files": len(files),
        "characters": characters,
        "sha256": digest.hexdigest(),
    }
