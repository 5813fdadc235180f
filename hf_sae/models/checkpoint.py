"""Strict loading and atomic saving: what transformers leaves to the caller.

* transformers logs missing, unexpected and misshapen tensors and accepts NaN; here each is a [`CheckpointError`].
* Only safetensors files are read: a pickle is never opened.
* A folder is written beside its destination and moved into place file by file: a full disk leaves no half-written file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .errors import CheckpointError
from .pinning import no_room


FEATURE_STATS = "feature_stats.safetensors"


def load_strictly(load: Callable[..., Any], name: str | Path, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Calls an SAE's `from_pretrained` of transformers with the arguments and returns `(model, loading_info)`.

    Args:
        load (`Callable`): the `from_pretrained`.
        name (`str` or `Path`): what is loaded, for errors.
        args: for `load`.
        kwargs: for `load`.

    Raises:
        CheckpointError: for files that are missing, truncated or not safetensors, and for tensors that are missing,
            unexpected, misshapen, not finite, or ruled out by the architecture.
    """
    # mismatched shapes come back in the loading info, so that every defect is refused in one place
    kwargs |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    try:
        with without_progress_bars():
            model, info = load(*args, **kwargs)
    except (OSError, SafetensorError) as error:
        if (full := no_room(str(name), error)) is not None:
            raise CheckpointError(full) from error
        raise CheckpointError(
            f"cannot read a checkpoint from {str(name)!r}: {_first_line(error)} "
            "Needed: config.json and model.safetensors (pickles are not read)."
        ) from error
    _refuse(name, "lacks the tensors", info["missing_keys"])
    _refuse(name, "has tensors that this architecture does not know:", info["unexpected_keys"])
    _refuse(
        name,
        "has misshapen tensors:",
        [f"{key} {list(found)}, wanted {list(wanted)}" for key, found, wanted in info["mismatched_keys"]],
    )
    _refuse(name, "has NaN or infinite values in", list(_not_finite(model)))
    _refuse(name, "has weights that its architecture rules out:", model.defects())
    return model, info


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def _refuse(name: str | Path, what: str, keys: Any) -> None:
    if keys:
        listed = ", ".join(str(k) for k in sorted(keys, key=str))
        raise CheckpointError(f"{str(name)!r} {what} {listed}. Is this another architecture, or a damaged file?")


def _not_finite(model: nn.Module) -> Iterator[str]:
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            yield key


@contextmanager
def without_progress_bars() -> Generator[None]:
    """Within it transformers draws no bar over the one or two files of an SAE (downloads keep theirs)."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def atomic_folder(destination: str | Path) -> Generator[Path]:
    """Yields an empty folder whose files are moved into `destination` when the block ends, or removed if it fails.

    Raises:
        CheckpointError: if the files cannot be written, such as on a full disk; `destination` is then as before.
    """
    destination = Path(destination)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        # beside the destination: a move inside one file system replaces a file in one step
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=destination))
    except OSError as error:
        raise CheckpointError(f"cannot write to {str(destination)!r}: {error}. Choose another folder.") from error
    try:
        yield temporary
        mode = _usual_mode(temporary)
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            target = destination / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
            path.replace(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save to {str(destination)!r}: {error}. Nothing was changed there; free space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _usual_mode(folder: Path) -> int:
    """The permissions that new files have here: safetensors writes files that only their owner may read."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def read_feature_stats(name: str, d_sae: int, hub_kwargs: dict[str, Any]) -> dict[str, Tensor] | None:
    """The statistics that evaluation wrote beside the weights, or `None` where there are none.

    Raises:
        CheckpointError: if the file is damaged or does not have `d_sae` latents.
    """
    path = cached_file(
        name,
        FEATURE_STATS,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub_kwargs,
    )
    if path is None:
        return None
    try:
        stats = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{FEATURE_STATS} of {str(name)!r} cannot be read: {error}. Delete it or evaluate again."
        ) from error
    for key in ("density", "maximum"):
        if key not in stats or stats[key].shape != (d_sae,):
            raise CheckpointError(
                f"{FEATURE_STATS} of {str(name)!r} has no {key!r} of shape [{d_sae}]. Evaluate again."
            )
    return stats
