"""What lies beside weights and belongs to these weights only: figures, statistics, examples,
presets for steering, the log of training, plots.

New weights must not stand beside the figures of old ones, nor beside other files of old weights, of which transformers would
read one set and ignore the other.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.checkpoint import FEATURE_STATS, atomic_folder
from ..steering.recipes import PRESETS
from .cards import ASSETS, EXAMPLES, LOG, README, RESULTS
from .collections import CONFIG
from .plots import PLOTS


if TYPE_CHECKING:
    from ..conversion.files import Files

COMPANIONS = (RESULTS, EXAMPLES, LOG, FEATURE_STATS, PRESETS, *(f"{ASSETS}/{name}" for name in sorted(PLOTS)))
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WEIGHTS = re.compile(r"model(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?\.safetensors")
_INDEX = re.compile(r"model\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json")


def stale(place: str, uploaded: Iterable[str], there: Iterable[str]) -> list[str]:
    """Files of a repo that would contradict the weights that are uploaded to a place in it.

    Args:
        place (`str`): folder in the repo; `""` is its root.
        uploaded (`Iterable[str]`): full names of what is uploaded.
        there (`Iterable[str]`): full names of what is there.

    Returns:
        `list[str]`: full names, sorted. Weights of another variant (`model.fp16.safetensors`) stay, and where only a variant is
        uploaded everything else does, too.
    """
    prefix = f"{place}/" if place else ""
    new = {name.removeprefix(prefix) for name in uploaded if name.startswith(prefix)}
    old = {name.removeprefix(prefix) for name in there if name.startswith(prefix)} - new
    variants = {variant for name in new if (variant := _variant(name)) is not None}
    gone = [name for name in old if _variant(name) in variants]
    if "" in variants or ADAPTER_FILES[1] in new:
        gone += [name for name in old if name in COMPANIONS or (name in ADAPTER_FILES and "" in variants)]
    return sorted(prefix + name for name in gone)


def _variant(name: str) -> str | None:
    """The variant of a file of weights (`""` is the usual one), or `None` for another file."""
    found = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
    return None if found is None else found["variant"] or ""


def fetch_companions(files: Files, folder: str | Path) -> list[str]:
    """Copies card and companions of one of our autoencoders into a folder; the names of those that there were.

    Args:
        files ([`Files`][hf_sae.conversion.files.Files]): the repo, with the autoencoder's place asked for.
        folder (`str` or `Path`): where the autoencoder was saved.

    Raises:
        CheckpointError: if the folder cannot be written.
        OSError: if a file cannot be downloaded.
    """
    config = files.find(CONFIG)
    if config is None or not str(files.json(config).get("model_type", "")).startswith("hf_sae_"):
        return []  # another library's README is not a card of what is saved here
    found = [name for name in (README, *COMPANIONS) if files.find(name) is not None]
    with atomic_folder(folder) as temporary:
        for name in found:
            target = temporary / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(files.path(str(files.find(name))), target)
    return found
