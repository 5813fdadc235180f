"""A feature dataset of the Hub as a folder here, to add labels to."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import DataError
from ..models.checkpoint import atomic_folder
from .manifest import MANIFEST
from .reading import FeatureDataset
from .schema import TABLES


def copy_dataset(dataset: FeatureDataset, folder: str | Path) -> FeatureDataset:
    """Puts all tables of a dataset into a new or empty folder.

    Raises:
        DataError: if the folder holds something.
        CheckpointError: if it cannot be written to.
        OSError: if the Hub cannot be reached.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{str(folder)!r} holds something already: give a new or an empty folder.")
    shards = [shard for name in TABLES for shard in dataset.manifest.shards.get(name, ())]
    sources = dataset.paths()
    with atomic_folder(folder) as place:
        for shard, source in zip(shards, sources, strict=True):
            (place / shard.file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place / shard.file)
        (place / MANIFEST).write_text(dataset.manifest.to_json(), encoding="utf-8")
    return FeatureDataset.open(folder)
