"""A label, how it was made, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .markup import text
from .words import number, ordinal


_CLEARLY = 0.05  # above chance, where there is no interval to go by


@dataclass(frozen=True)
class LabelView:
    """What somebody or something called a latent.

    Args:
        text (`str`): the label.
        method (`str`): how it was made.
        model (`str`, *optional*): what wrote it.
        score (`float`, *optional*), score_method (`str`, *optional*): how well it predicts where the latent fires.
        chance (`float`, *optional*): the score of a label that says nothing.
        low (`float`, *optional*), high (`float`, *optional*): ends of the 95 % interval of the score.
        judged (`int`, *optional*), failed (`int`, *optional*): contexts, and answers that could not be read.
        counterexamples (`list` of `str`): texts where the label says that it fires and it does not.
    """

    text: str
    method: str = ""
    model: str | None = None
    score: float | None = None
    score_method: str | None = None
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    judged: int | None = None
    failed: int | None = None
    counterexamples: Sequence[str] = ()

    @property
    def near_chance(self) -> bool:
        """Whether the score says little: its interval reaches down to chance, or it is hardly above it."""
        if self.score is None or self.chance is None or self.score != self.score:
            return False
        if self.low is not None:
            return self.low <= self.chance
        return self.score <= self.chance + _CLEARLY


def label_line(label: LabelView | None) -> str:
    """The label in quotes, how it was made, and the badge of its score."""
    if label is None:
        return '<span class="hs-unlabelled">no label yet</span>'
    return f'<q class="hs-label">{text(label.text)}</q> {badge(label)}'


def badge(label: LabelView) -> str:
    """The score as a badge; grey, and said in words, where it is no better than chance or there is none."""
    if label.score is None or label.score != label.score:
        return f'<span class="hs-badge hs-grey" title="{text(basis(label))}">not scored</span>'
    words = f"{number(round(label.score, 2))}{' · near chance' if label.near_chance else ''}"
    kind = "hs-badge hs-grey" if label.near_chance else "hs-badge"
    return f'<span class="{kind}" title="{text(basis(label))}">{text(words)}</span>'


def basis(label: LabelView) -> str:
    """`label by n-gram rule, detection 0.91 (chance 0.5, 95 % interval 0.84 to 0.96)`."""
    by = f"label by {label.method or 'an unnamed method'}" + (f" ({label.model})" if label.model else "")
    if label.score is None or label.score != label.score:
        return f"{by}, not scored"
    inside = [f"chance {number(label.chance)}"] if label.chance is not None else []
    if label.low is not None and label.high is not None:
        inside.append(f"95 % interval {number(round(label.low, 2))} to {number(round(label.high, 2))}")
    score = f"{label.score_method or 'score'} {number(round(label.score, 2))}"
    judged = f" on {ordinal(label.judged, 'context')}" if label.judged is not None else ""
    failed = f", {ordinal(label.failed, 'answer')} could not be read" if label.failed else ""
    beside = f" ({', '.join(inside)})" if inside else ""
    return f"{by}, {score}{beside}{judged}{failed}"


def counterexamples(label: LabelView) -> str:
    """Texts that speak against a label, folded away."""
    if not label.counterexamples:
        return ""
    rows = "".join(f"<li><code>{text(example)}</code></li>" for example in label.counterexamples)
    amount = ordinal(len(label.counterexamples), "counter-example")
    return (
        f'<details class="hs-fold"><summary>{amount}</summary><p class="hs-note">The label says that it fires here, and it does '
        f"not.</p><ul>{rows}</ul></details>"
    )
