"""The folder of indexes: what was not used for longest goes when there are too many, never what somebody reads.

Who reads an index holds a shared lock on its stamp; what is locked stays. Where a system has no such locks, it keeps open files
from being removed itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO


MAX_INDEXES, MAX_BYTES = 16, 8 << 30
_ABANDONED = 86_400.0  # seconds after which what a killed process was making is taken for left behind


def hold(stamp: Path) -> IO[bytes]:
    """An open stamp, whose index is in use until it is closed; it counts as used now."""
    file = stamp.open("rb")
    with suppress(OSError):  # a cache that may only be read
        os.utime(stamp)
    _lock(file, shared=True)
    return file


def prune(cache: Path, stamp: str, most: int | None = None, most_bytes: int | None = None) -> list[Path]:
    """Removes the indexes that were not used for longest, until the others are within both bounds.

    Args:
        cache (`Path`): the folder of all indexes.
        stamp (`str`): name of the file that makes a folder one of them; nothing else is touched.
        most (`int`, *optional*), most_bytes (`int`, *optional*): instead of 16 and 8 GiB.

    Returns:
        `list[Path]`: what was removed.
    """
    most, most_bytes = most or MAX_INDEXES, MAX_BYTES if most_bytes is None else most_bytes
    for left in cache.glob(".*-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    found = []
    for path in cache.glob(f"*/{stamp}"):
        with suppress(OSError):  # another process removes it too
            size = sum(file.stat().st_size for file in path.parent.iterdir())
            found.append((path.stat().st_mtime, path.parent, size))
    removed, kept, total = [], 0, 0
    for _, folder, size in sorted(found, reverse=True):
        # the newest stays, however large
        if kept == 0 or (kept < most and total + size <= most_bytes) or not _remove(folder, stamp):
            kept, total = kept + 1, total + size
        else:
            removed.append(folder)
    return removed


def _remove(folder: Path, stamp: str) -> bool:
    """Removes an index that nobody reads; it is gone for others in one step."""
    try:
        with (folder / stamp).open("rb") as file:
            if not _lock(file, shared=False):
                return False
            place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            folder.rename(place / "old")
    except OSError:
        return False
    shutil.rmtree(place, ignore_errors=True)
    return True


def _lock(file: IO[bytes], shared: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # no such locks here
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
