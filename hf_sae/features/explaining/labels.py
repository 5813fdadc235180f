"""What a labeller is and what it gives: a text, how it was made, and what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .latent import Latent
from .windows import Windows


class Detector(Protocol):
    """Predicts from a label in which contexts the latent fires."""

    def fires(self, contexts: Windows) -> list[bool | None]:
        """An answer for each context `[n]`; `None` where there is none, such as an answer that cannot be read."""


@dataclass(frozen=True)
class Label:
    """A label of one latent.

    Args:
        text (`str`): in plain words.
        detector ([`Detector`], *optional*): tells where the latent fires, by the label; without one the label is not scored.
    """

    text: str
    detector: Detector | None


class Labeller(Protocol):
    """Makes labels.

    `method`, `model`, `revision` and `prompt` say how, as the dataset records it; `batch_size` latents are labelled at once.
    """

    method: str
    model: str | None
    revision: str | None
    prompt: str | None
    batch_size: int

    def label(self, latents: Sequence[Latent]) -> list[Label | None]:
        """A label for each; `None` for one of which nothing can be said."""
