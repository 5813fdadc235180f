"""How common tokens are at all: the `zero` contexts of many latents, each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .vocabulary import Vocabulary
from .windows import COLUMNS, ZERO, Windows


if TYPE_CHECKING:
    from ..reading import FeatureDataset

_ENOUGH = 512  # contexts
_PATIENCE = 40  # batches without a new one, after which there are no more


@dataclass(frozen=True)
class Background:
    """Contexts from anywhere in the text.

    Args:
        windows ([`Windows`]): the contexts.
    """

    windows: Windows

    def outside(self, documents: np.ndarray) -> np.ndarray:
        """`[n]`: those that are from other documents."""
        return ~np.isin(self.windows.documents, documents)

    @classmethod
    def of(cls, dataset: FeatureDataset, vocabulary: Vocabulary) -> Background:
        """From the contexts in which some latent does not fire: they are a sample of the text, whatever the latent."""
        known: dict[tuple[int, ...], pa.Table] = {}
        empty, quiet = pa.table({}), 0
        for rows in dataset.columns("examples", COLUMNS):
            empty = rows.slice(0, 0)
            some = rows.filter(pc.field("kind") == ZERO)
            before = len(known)
            for place, ids in enumerate(some.column("token_ids").to_pylist()):
                known.setdefault(tuple(ids), some.slice(place, 1))
            quiet = quiet + 1 if len(known) == before else 0
            if len(known) >= _ENOUGH or (known and quiet >= _PATIENCE):
                break
        return cls(Windows.of(pa.concat_tables([empty, *known.values()]), vocabulary))
