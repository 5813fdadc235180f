"""All that a labeller may see of a latent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .background import Background
from .splitting import HeldOut, split_by_document
from .windows import Windows


@dataclass(frozen=True)
class Latent:
    """One latent: contexts to label it from, and contexts that the label is tested on.

    Args:
        sae_id (`str`), feature (`int`): which.
        density (`float`): share of the tokens on which it fires.
        promoted (`tuple` of `int`): tokens whose logits it raises most, by their numbers in the vocabulary, strongest first.
        seen ([`Windows`]): what a label is made from.
        held_out ([`HeldOut`]): what it is tested on; no labeller looks at it.
        background ([`Background`]): of all latents.
    """

    sae_id: str
    feature: int
    density: float
    promoted: tuple[int, ...]
    seen: Windows
    held_out: HeldOut
    background: Background

    @classmethod
    def of(
        cls,
        key: tuple[str, int],
        windows: Windows,
        density: float,
        promoted: tuple[int, ...],
        background: Background,
        seed: int = 0,
    ) -> Latent:
        """From all contexts of a latent."""
        return cls(*key, density, promoted, *split_by_document(windows, seed), background)

    @property
    def firing(self) -> Windows:
        """The contexts of `seen` in which it fires, strongest first."""
        firing = self.seen.take(self.seen.fires)
        peaks = np.abs(firing.acts).max(1, initial=0)
        return firing.take(np.argsort(-peaks, kind="stable"))
