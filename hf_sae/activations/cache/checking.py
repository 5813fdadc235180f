"""Whether a shard is what the manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import DataError
from .manifest import Manifest, Shard
from .sources import FolderShards, HubShards


def problem(path: Path, shard: Shard, contents: bool = True) -> str | None:
    """What is wrong with a file, or `None`.

    Args:
        path (`Path`): the file.
        shard ([`Shard`]): what it has to be.
        contents (`bool`): read it whole and compare its SHA-256; the size is always compared.
    """
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"it has {size:,} bytes instead of {shard.bytes:,}"
        if contents:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != shard.sha256:
                return f"its SHA-256 is {found[:12]}… instead of {shard.sha256[:12]}…"
    except OSError as error:
        return f"it cannot be read ({error})"
    return None


def whole_path(source: FolderShards | HubShards, shard: Shard, contents: bool = True) -> tuple[Path, str | None]:
    """Where a shard lies and what is wrong with it; from the Hub it is fetched once more first."""
    path = source.path(shard)
    wrong = problem(path, shard, contents)
    if wrong is not None and (again := source.repaired(shard)) is not None:
        path, wrong = again, problem(again, shard, contents)
    return path, wrong


def read_tensors(path: Path, shard: Shard, manifest: Manifest, points: list[str]) -> dict[str, Tensor]:
    """The tensors of some places, mapped into memory, and the ids.

    Raises:
        DataError: if they are not those of the manifest.
    """
    wanted: dict[str, tuple[int, ...]] = {"token_ids": (), "document_ids": ()}
    for point in points:
        wanted |= {n: (w,) for n, (w, _) in manifest.storage.shapes(point, manifest.points[point].width).items()}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise DataError(damaged(shard, str(error))) from error
    for name, rest in wanted.items():
        if tensors[name].shape != (shard.rows, *rest):
            raise DataError(damaged(shard, f"{name!r} has the shape {list(tensors[name].shape)}"))
    return tensors


def damaged(shard: Shard, why: str) -> str:
    """The sentence about a shard that cannot be used."""
    return (
        f"the shard {shard.file!r} is damaged: {why}. Copy or download it again, write the cache again, or pass skip_corrupt=True "
        f"(--skip-corrupt) to go on without its {shard.rows:,} tokens; `hf-sae cache verify` looks at all shards."
    )


def verify(source: FolderShards | HubShards, progress: Callable[[Shard], None] = lambda shard: None) -> dict[str, str]:
    """Reads every shard of a cache and says what is wrong with which, `{file: why}`; `progress` is called after each."""
    found = {}
    for shard in source.manifest.shards:
        path, wrong = whole_path(source, shard)
        if wrong is None:
            try:
                read_tensors(path, shard, source.manifest, list(source.manifest.points))
            except DataError as error:
                wrong = str(error)
        if wrong is not None:
            found[shard.file] = wrong
        source.release(shard)
        progress(shard)
    return found
