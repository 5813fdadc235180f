"""Training checkpoints that resume bit for bit.

A folder `checkpoint-<step>/` holds the model as any loader reads it and, beside it, what training alone needs:
`trainer_state.json` (numbers, the stream's position), `optimizer.safetensors` and `stream.safetensors` (ring, RNG). It is
written under another name and renamed when whole, so that a killed run never leaves half a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError


STATE, OPTIMIZER, STREAM = "trainer_state.json", "optimizer.safetensors", "stream.safetensors"
_PATTERN = re.compile(r"checkpoint-(\d+)")


def complete(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in Path(output_dir).glob("checkpoint-*") if (m := _PATTERN.fullmatch(p.name))]
    return [path for _, path in sorted(found) if (path / STATE).is_file()]


def to_resume(output_dir: str | Path, wanted: bool | str | Path) -> Path:
    """The folder that `resume_from_checkpoint` means: a path, or `True` for the newest of `output_dir`.

    Raises:
        CheckpointError: if there is none.
    """
    if wanted is True:
        found = complete(output_dir)
        if not found:
            raise CheckpointError(
                f"no checkpoint-<step> folder in {str(output_dir)!r} to resume from. Train without resuming."
            )
        return found[-1]
    path = Path(str(wanted))
    if not (path / STATE).is_file():
        nearby = ", ".join(p.name for p in complete(path)) or "none"
        raise CheckpointError(
            f"{str(path)!r} is not a training checkpoint (no {STATE}). Checkpoints inside it: {nearby}."
        )
    return path


@contextmanager
def new_folder(output_dir: str | Path, step: int) -> Generator[Path]:
    """Yields a folder that becomes `checkpoint-<step>` when the block ends, and disappears if it fails.

    Raises:
        CheckpointError: if it cannot be written, such as on a full disk.
    """
    output_dir = Path(output_dir)
    target = output_dir / f"checkpoint-{step}"
    temporary = None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".checkpoint-{step}-", dir=output_dir))
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not write {str(target)!r}: {error}. Older checkpoints are untouched; free space and resume from them."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def drop_old(output_dir: str | Path, keep: int | None) -> None:
    """Removes all but the newest `keep` checkpoints, and what killed runs left behind."""
    for leftover in Path(output_dir).glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in complete(output_dir)[: -keep if keep else 0]:
        shutil.rmtree(old)


def write(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Writes the tensors of a flat state to `path` and returns the rest, which is JSON."""
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}, path)
    return {k: v for k, v in state.items() if not isinstance(v, Tensor)}


def read(path: Path, rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of [`write`].

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        return {**rest, **load_file(path)}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}. Resume from an older checkpoint.") from error


def read_json(folder: Path) -> dict[str, Any]:
    """`trainer_state.json`.

    Raises:
        CheckpointError: if it is not JSON.
    """
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{STATE} of {str(folder)!r} cannot be read: {error}. Resume from an older checkpoint."
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimiser's tensors by parameter name; `names` in the order of its parameters."""
    state = optimizer.state_dict()["state"]
    return {f"{names[i]}/{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """The inverse of [`optimizer_tensors`]."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        state.setdefault(names.index(name), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
