"""The detection score: does a label tell the contexts in which a latent fires from those in which it does not?

Balanced accuracy, the mean of the share of firing contexts that were called firing and the share of silent ones that were called silent. An answer that
knows nothing of the latent scores 0.5, whatever its share of yes; plain accuracy would reward one that always says no.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from .labels import Detector
from .splitting import HeldOut


CHANCE = 0.5
FEWEST = 4  # contexts of each side below which there is no score
MOST_COUNTEREXAMPLES = 3
_Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Detection:
    """How a label fares on contexts that it was not made from.

    Args:
        score (`float`, *optional*), low (`float`, *optional*), high (`float`, *optional*): balanced accuracy and its 95 % interval.
        firing (`int`), silent (`int`): contexts of each side that were judged.
        hard (`int`): how many of the silent ones have the token on which the latent fires elsewhere.
        failed (`int`): answers that could not be read; they count for neither side.
        counterexamples (`tuple[str, ...]`): silent contexts that the label calls firing.
        reason (`str`, *optional*): why there is no score, in few words.
    """

    score: float | None
    low: float | None
    high: float | None
    firing: int
    silent: int
    hard: int
    failed: int = 0
    counterexamples: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def method(self) -> str:
        """What the score is, or why there is none, in words."""
        if self.reason is not None:
            return f"not scored: {self.reason} ({self.firing} firing, {self.silent} silent contexts)"
        hard = f", {self.hard} of them with the same token" if self.hard else ""
        return f"balanced accuracy of detection on {self.firing} firing and {self.silent} silent contexts{hard}"


def detect(detector: Detector | None, held_out: HeldOut) -> Detection:
    """Scores what a label predicts on held-out contexts.

    Args:
        detector ([`Detector`], *optional*): of the label.
        held_out ([`HeldOut`]): contexts that the label was not made from.
    """
    firing, silent = len(held_out.firing), len(held_out.silent)
    if detector is None or min(firing, silent) < FEWEST:
        side = "firing" if firing < FEWEST else "silent"
        why = (
            "nothing to predict with"
            if detector is None
            else f"fewer than {FEWEST} {side} contexts in other documents"
        )
        return Detection(None, None, None, firing, silent, held_out.n_hard, reason=why)
    said_firing, said_silent = detector.fires(held_out.firing), detector.fires(held_out.silent)
    positives = [answer for answer in said_firing if answer is not None]
    negatives = [answer for answer in said_silent if answer is not None]
    hard = sum(answer is not None for answer in said_silent[silent - held_out.n_hard :]) if held_out.n_hard else 0
    wrong = [row for row, answer in enumerate(said_silent) if answer]
    counterexamples = tuple(held_out.silent.text(row) for row in wrong[:MOST_COUNTEREXAMPLES])
    counts = (len(positives), len(negatives), hard, firing + silent - len(positives) - len(negatives))
    if min(counts[:2]) < FEWEST:
        return Detection(None, None, None, *counts, counterexamples, "too few answers that could be read")
    score, low, high = balanced_accuracy(sum(positives), len(positives), negatives.count(False), len(negatives))
    return Detection(score, low, high, *counts, counterexamples)


def balanced_accuracy(right_a: int, n_a: int, right_b: int, n_b: int) -> tuple[float, float, float]:
    """The mean of two shares and its 95 % interval.

    The interval puts the Wilson intervals of the two together by the square-and-add rule of Newcombe (1998,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C873::AID-SIM779%3E3.0.CO;2-I): it is not empty where every answer is right.
    """
    (a, low_a, high_a), (b, low_b, high_b) = wilson(right_a, n_a), wilson(right_b, n_b)
    middle = (a + b) / 2
    return (
        middle,
        middle - sqrt((a - low_a) ** 2 + (b - low_b) ** 2) / 2,
        middle + sqrt((high_a - a) ** 2 + (high_b - b) ** 2) / 2,
    )


def wilson(right: int, n: int) -> tuple[float, float, float]:
    """A share and its 95 % Wilson score interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    share = right / n
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # at the ends rounding would leave a hair
    return share, 0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half
