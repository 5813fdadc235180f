"""Training checkpoints that resume bit for bit.

A folder `checkpoint-<step>/` holds the model as any loader reads it and, beside it, what training alone needs:
`trainer_state.json` (numbers, the stream's position), `optimizer.safetensors` and `stream.safetensors` (ring, RNG). Of
several processes each writes a stream file of its own, and where latents are shared out an optimiser file with its rows:
`optimizer-00001-of-00002.safetensors`. The folder is written under another name, and renamed by the main process when all
have written, so that a killed run never leaves half a checkpoint.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from .parallel import Processes


STATE, OPTIMIZER, STREAM = "trainer_state.json", "optimizer.safetensors", "stream.safetensors"
FIRED = "tokens_since_fired"
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
def new_folder(output_dir: str | Path, step: int, processes: Processes) -> Generator[tuple[Path, dict[str, Any]]]:
    """A folder that becomes `checkpoint-<step>` when the block has ended in every process, and disappears if one fails.

    Yields:
        The folder, and an empty dict for what this process has to say; [`STATE`] is made of what all have said.

    Raises:
        CheckpointError: in every process, if one cannot write, such as on a full disk.
    """
    output_dir = Path(output_dir)
    target = output_dir / f"checkpoint-{step}"
    temporary, said, failure = None, {}, None
    try:
        if processes.is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".checkpoint-{step}-", dir=output_dir))
    except OSError as error:
        failure = error
    name = processes.objects(None if temporary is None else temporary.name)[0]
    try:
        if name is not None:
            try:
                yield output_dir / name, said
            except (OSError, SafetensorError, CheckpointError) as error:
                failure = error
        _all_or_nothing(target, temporary, said, failure, processes)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _all_or_nothing(
    target: Path, temporary: Path | None, said: dict[str, Any], failure: Exception | None, processes: Processes
) -> None:
    everybody = processes.objects((None if failure is None else str(failure), said))
    wrong = next((f"process {r}: {e}" if processes.size > 1 else e for r, (e, _) in enumerate(everybody) if e), None)
    if wrong is None and temporary is not None:
        try:
            text = json.dumps(_together([said for _, said in everybody]), indent=1)
            (temporary / STATE).write_text(text, encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        except OSError as error:
            failure, wrong = error, str(error)
    wrong = processes.objects(wrong)[0]
    if wrong is not None:
        raise CheckpointError(
            f"could not write {str(target)!r}: {wrong}. Older checkpoints are untouched; free space and resume from them."
            + (
                " All processes write to one folder: on several machines it has to be shared."
                if processes.size > 1
                else ""
            )
        ) from failure


def _together(said: list[dict[str, Any]]) -> dict[str, Any]:
    """What the main process said, with the SAEs and streams of all."""
    saes = {name: values for part in reversed(said) for name, values in part["saes"].items()}
    return {**said[0], "saes": saes, "streams": [part["stream"] for part in said]}


def shard_name(name: str, number: int, count: int) -> str:
    """`stream.safetensors`, or `stream-00001-of-00002.safetensors` for the first (0) of two."""
    return name if count == 1 else name.replace(".", f"-{number + 1:05d}-of-{count:05d}.")


def drop_old(output_dir: str | Path, keep: int | None) -> None:
    """Removes all but the newest `keep` checkpoints, and what killed runs left behind."""
    for leftover in Path(output_dir).glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in complete(output_dir)[: -keep if keep else 0]:
        shutil.rmtree(old)


def write(path: Path, state: dict[str, Any], latents: tuple[int, int] | None = None) -> dict[str, Any]:
    """Writes the tensors of a flat state to `path` and returns the rest, which is JSON.

    Args:
        path (`Path`): a safetensors file.
        state (`dict`): by name.
        latents (`tuple`, *optional*): the range whose rows these are.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    save_file(tensors, path, None if latents is None else {"latents": f"{latents[0]}-{latents[1]}"})
    return {k: v for k, v in state.items() if not isinstance(v, Tensor)}


def read_rows(folder: Path, per_latent: tuple[str, ...], start: int, stop: int) -> dict[str, Tensor]:
    """The optimiser state and the counters of the latents `start` to `stop`, whoever wrote them.

    Args:
        folder (`Path`): of one SAE.
        per_latent (`tuple`): parameters with a row per latent.
        start (`int`), stop (`int`): the range.

    Raises:
        CheckpointError: if a file is missing or damaged, or rows are missing.
    """
    parts: dict[str, list[Tensor]] = {}
    names = sorted(folder.glob(OPTIMIZER.replace(".", "*.")))
    try:
        for path in names:
            with safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get("latents", f"0-{stop}")
                first, last = (int(n) for n in found.split("-"))
                for key in file.keys():  # noqa: SIM118  # a file is not a dict
                    part = file.get_slice(key)
                    rows = key == FIRED or (key.rpartition("/")[0] in per_latent and part.get_shape())
                    if rows and max(first, start) < min(last, stop):
                        parts.setdefault(key, []).append(part[max(first, start) - first : min(last, stop) - first])
                    elif not rows and key not in parts:
                        parts[key] = [file.get_tensor(key)]
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}. Resume from an older checkpoint.") from error
    counted = sum(len(part) for part in parts.get(FIRED, ()))
    if counted != stop - start:
        raise CheckpointError(
            f"{str(folder)!r} holds the optimiser state of {counted} of the latents {start} to {stop}: a file {OPTIMIZER!r} or "
            "one of its shards is missing. Resume from an older checkpoint."
        )
    return {key: torch.cat(part) if len(part) > 1 else part[0] for key, part in parts.items()}


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
