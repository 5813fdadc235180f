"""What a labelling did: labels with their scores, what was left out and why, and how labels of other latents fare."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from .detection import CHANCE, Detection


@dataclass(frozen=True)
class Explained:
    """A latent that was labelled.

    Args:
        sae_id (`str`), feature (`int`): which.
        text (`str`): its label.
        density (`float`): share of the tokens on which it fires.
        detection ([`Detection`]): how the label fares.
    """

    sae_id: str
    feature: int
    text: str
    density: float
    detection: Detection

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = self.detection
        return {
            "sae_id": self.sae_id,
            "feature": self.feature,
            "label": self.text,
            "density": self.density,
            "score": found.score,
            "low": found.low,
            "high": found.high,
            "method": found.method,
            "firing": found.firing,
            "silent": found.silent,
            "hard": found.hard,
            "failed": found.failed,
            "counterexamples": list(found.counterexamples),
        }


@dataclass
class ExplainReport:
    """The result of [`explain_features`].

    Args:
        folder (`Path`): the feature dataset.
        method (`str`), model (`str`, *optional*): how labels were made.
        labelled (`list` of [`Explained`]): in order.
        known (`int`): latents that were left out because they have a label of this method.
        silent (`int`): that were left out because they never fired.
        unlabelled (`int`): of which nothing could be said.
        control (`list` of `float`): scores of labels on the contexts of another latent each: what chance looks like here.
        usage (`dict`): what the judge says it used.
    """

    folder: Path
    method: str
    model: str | None
    labelled: list[Explained] = field(default_factory=list)
    known: int = 0
    silent: int = 0
    unlabelled: int = 0
    control: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> list[float]:
        """Of the labels that have one."""
        return [one.detection.score for one in self.labelled if one.detection.score is not None]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        scores = self.scores
        above = sum((one.detection.low or 0) > CHANCE for one in self.labelled)
        return {
            "folder": str(self.folder),
            "method": self.method,
            "model": self.model,
            "chance": CHANCE,
            "labelled": len(self.labelled),
            "scored": len(scores),
            "mean_score": mean(scores) if scores else None,
            "median_score": median(scores) if scores else None,
            "above_chance": above,
            "control": mean(self.control) if self.control else None,
            "known": self.known,
            "never_fired": self.silent,
            "unlabelled": self.unlabelled,
            "failed_answers": sum(one.detection.failed for one in self.labelled),
            "not_scored": dict(Counter(o.detection.reason for o in self.labelled if o.detection.reason)),
            "usage": self.usage,
            "labels": [one.to_dict() for one in self.labelled],
        }
