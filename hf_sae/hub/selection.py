"""Which files of a saved folder go up, and where they land in the repo."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .collections import ADAPTER, CONFIG, read_json


if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

logger = logging.getLogger(__name__)
# what only training needs: an optimiser's state is twice the weights, and of no use to a reader
TRAINING_STATE = ("optimizer*.safetensors", "stream*.safetensors", "trainer_state.json", "checkpoint-*", "runs/*")
# whoever opens a pickle runs what is in it
PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.dill")
NEVER = (".*", "*/.*", *PICKLES)


def additions(
    folder: Path, place: str = "", ignore_patterns: Iterable[str] = (), training_state: bool = False
) -> list[CommitOperationAdd]:
    """What a commit of the folder adds to a repo.

    Links stay at home: what they point at, anywhere on this machine, was not meant to be published. So do pickles and hidden
    files, and with them `TRAINING_STATE` unless it is asked for. Modelling code goes to the root of the repo, which is where
    transformers looks for it.

    Args:
        folder (`Path`): what `save_pretrained` wrote, or many such folders.
        place (`str`): folder in the repo; `""` is its root.
        ignore_patterns (`Iterable[str]`): more files to leave out, as glob patterns.
        training_state (`bool`): also what only a resumed training needs.

    Raises:
        CheckpointError: if a config would go up without its weights.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import filter_repo_objects

    found = sorted(path for path in folder.rglob("*") if path.is_file())
    links = {path for path in found if path.is_symlink()}
    names = [path.relative_to(folder).as_posix() for path in found if path not in links]
    left_out = [*NEVER, *(() if training_state else TRAINING_STATE), *ignore_patterns]
    kept = list(filter_repo_objects(names, ignore_patterns=left_out))
    pickles = [name for name in names if name not in list(filter_repo_objects(names, ignore_patterns=list(PICKLES)))]
    _require_weights(folder, set(kept))
    if links or pickles:
        logged = ", ".join([*(path.relative_to(folder).as_posix() for path in sorted(links)), *pickles])
        logger.warning("not uploaded, because links and pickles are not published: %s", logged)
    code = set(_code(folder, kept))
    targets: dict[str, Path] = {}
    for name in kept:
        target = Path(name).name if name in code else f"{place}/{name}" if place else name
        if target in targets and targets[target].read_bytes() != (folder / name).read_bytes():
            raise CheckpointError(
                f"{target!r} differs between the autoencoders of {str(folder)!r}: save them again with one version of hf_sae."
            )
        targets[target] = folder / name
    return [CommitOperationAdd(target, path) for target, path in targets.items()]


def _code(folder: Path, kept: list[str]) -> Iterator[str]:
    """Python files beside a config that names them."""
    for name in kept:
        config = folder / Path(name).parent / CONFIG
        if name.endswith(".py") and config.is_file() and "auto_map" in read_json(config):
            yield name


def _require_weights(folder: Path, kept: set[str]) -> None:
    """Refuses a folder of which a config goes up alone: it would look like an autoencoder and be none."""
    configs = {path for name in (CONFIG, ADAPTER) for path in folder.rglob(name)}
    for config in sorted(configs):
        inside = config.parent.relative_to(folder)
        parts = inside.parts
        if any(part.startswith((".", "checkpoint-")) for part in parts):
            continue
        siblings = {Path(name).name for name in kept if Path(name).parent == inside}
        if config.name in siblings and any(name.endswith(".safetensors") for name in siblings):
            continue
        what = "its weights (*.safetensors)" if config.name in siblings else config.name
        here = ", ".join(sorted(path.name for path in config.parent.iterdir())) or "nothing"
        raise CheckpointError(
            f"{str(config.parent)!r} cannot be pushed whole: {what} would stay behind. It holds {here}. Pickles and links are "
            "not published: save the model there with save_pretrained."
        )
