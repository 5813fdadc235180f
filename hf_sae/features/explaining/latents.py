"""The latents of a feature dataset one after the other, as a labeller sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DataError
from .background import Background
from .latent import Latent
from .vocabulary import Vocabulary
from .windows import Windows, latents_of, vocabulary_of


if TYPE_CHECKING:
    from ..reading import FeatureDataset

Key = tuple[str, int]  # autoencoder and latent


class Latents:
    """Makes a [`Latent`] of each one that is asked for.

    Args:
        dataset ([`FeatureDataset`]): which.
        seed (`int`): of the split into contexts to label from and to test on.

    Raises:
        DataError: if the dataset has no contexts.
    """

    def __init__(self, dataset: FeatureDataset, seed: int = 0) -> None:
        if not dataset.manifest.rows("examples"):
            raise DataError(f"{dataset.name!r} has no contexts to label from: harvest them with `hf-sae features`.")
        self.dataset, self.seed = dataset, seed
        self.vocabulary: Vocabulary = vocabulary_of(dataset)
        self.background = Background.of(dataset, self.vocabulary)
        self._facts: dict[Key, tuple[float, list[int]]] = {}
        for rows in dataset.columns("features", ["density", "pos_token_ids"]):
            columns = (rows.column(name).to_pylist() for name in ("sae_id", "feature", "density", "pos_token_ids"))
            self._facts |= {(sae_id, feature): (d, ids) for sae_id, feature, d, ids in zip(*columns, strict=True)}

    def fired(self) -> dict[Key, float]:
        """Density of each latent that fired, in order."""
        return {key: density for key, (density, _) in self._facts.items() if density > 0}

    def of(self, wanted: Collection[Key]) -> Iterator[Latent]:
        """Those of `wanted` that have contexts, in order."""
        for sae_id, feature, rows in latents_of(self.dataset):
            if (sae_id, feature) not in wanted:
                continue
            density, promoted = self._facts.get((sae_id, feature), (0.0, []))
            numbers = tuple(self.vocabulary.numbers(np.array(promoted, dtype=np.int64)).tolist())
            windows = Windows.of(rows, self.vocabulary)
            yield Latent.of((sae_id, feature), windows, density, numbers, self.background, self.seed)
