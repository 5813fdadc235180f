"""What a cache that is being written has to remember to go on after it was killed: one file, replaced after every shard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import DataError
from .manifest import Shard


PROGRESS = ".progress.safetensors"  # hidden: never uploaded
TEMPORARY = ".part-"


def put(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Writes a file under another name and renames it when it is whole.

    Raises:
        DataError: if it cannot be written, such as on a full disk; nothing of it stays behind.
    """
    temporary, target = folder / f"{TEMPORARY}{name}", folder / name
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # that of new files here: safetensors' own can be read by their owner only
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
        temporary.chmod(mode)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"could not write {str(target)!r}: {error}. The shards before it are whole: free space and go on with resume=True, "
            "or --resume."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def save(folder: Path, settings: dict[str, Any], shards: list[Shard], state: Mapping[str, Any]) -> None:
    """Replaces the progress by that after the latest shard; `state` is flat, tensors and JSON values."""
    values = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    facts = {"settings": settings, "shards": [asdict(shard) for shard in shards], "values": values}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    put(folder, PROGRESS, tensors, {"progress": json.dumps(facts)})


def load(folder: Path, settings: dict[str, Any]) -> tuple[list[Shard], dict[str, Any]] | None:
    """Shards and state where writing stopped, or `None` where nothing was begun.

    Raises:
        DataError: if it was begun with other settings, or the file is damaged.
    """
    path = folder / PROGRESS
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["progress"])
            state: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read: {error}. Delete the folder and write the cache again."
        ) from error
    for name, here in settings.items():
        if facts["settings"].get(name) != here:
            raise DataError(
                f"the cache in {str(folder)!r} was begun with {name}={facts['settings'].get(name)!r}, and this call has {here!r}. "
                "Go on with the same values, or give another folder."
            )
    return [Shard.read(shard) for shard in facts["shards"]], state | facts["values"]
