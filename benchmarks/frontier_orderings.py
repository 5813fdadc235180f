"""What papers say about which mechanism is better, and on how many seeds the frontier shows it.

Two architectures are compared at the same L0: the baseline's figure is read off the line through its points, over the logarithm
of L0. Outside the range of its points nothing is compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .frontier_runs import GIVEN


Line = dict[str, Any]
COLUMNS = ("published", "compared here", "figure", "mean difference", "seeds", "holds")
SLACK = 1.1  # a point this far outside the baseline's range of L0 is compared with the end of the line


@dataclass(frozen=True)
class Ordering:
    """A claim about two architectures.

    Args:
        claim (`str`): what was published.
        method (`str`), baseline (`str`): architectures.
        figure (`str`): of a line.
        sign (`int`): 1 where the method's figure is to be larger, -1 where smaller.
        tolerance (`float`): share of the baseline's figure by which it may be worse ("at least", "about").
        distance_from (`float`, *optional*): compared is the distance from this value.
        variant (`str`): the method's figure is the one whose name ends in `_<variant>`, from runs that have it.
    """

    claim: str
    method: str
    baseline: str
    figure: str = "fvu"
    sign: int = -1
    tolerance: float = 0.0
    distance_from: float | None = None
    variant: str = ""

    def value(self, line: Line) -> float | None:
        """The figure of a line; `None` where it has none."""
        varied = self.variant and line["arch"] == self.method
        number = line.get(f"{self.figure}_{self.variant}" if varied else self.figure)
        if number is None or not math.isfinite(number):
            return None
        return number if self.distance_from is None else abs(number - self.distance_from)

    def difference(self, lines: Sequence[Line], seed: int) -> tuple[float, float] | None:
        """Means over the method's points of (method - baseline, baseline); `None` where nothing can be compared."""
        ours, theirs = (
            sorted(
                (line["l0"], value)
                for line in lines
                if _is(line, arch, seed) and (value := self.value(line)) is not None
            )
            for arch in (self.method, self.baseline)
        )
        pairs = [(value, at) for l0, value in ours if (at := at_l0(theirs, l0)) is not None]
        if not pairs:
            return None
        return statistics.fmean(a - b for a, b in pairs), statistics.fmean(b for _, b in pairs)

    def holds(self, difference: tuple[float, float]) -> bool:
        """Whether the method is on the right side of the baseline, by more than the tolerance allows."""
        by, of = difference
        return self.sign * by + self.tolerance * abs(of) >= 0 if self.tolerance else self.sign * by > 0


def _is(line: Line, arch: str, seed: int) -> bool:
    return line["arch"] == arch and line["seed"] == seed and line.get("l0", 0) > 0


def at_l0(points: Sequence[tuple[float, float]], l0: float) -> float | None:
    """The figure at `l0` on the line through `points` `(L0, figure)`, sorted, over the logarithm of L0."""
    if not points or not points[0][0] / SLACK <= l0 <= points[-1][0] * SLACK:
        return None
    for (a, low), (b, high) in pairwise(points):
        if a <= l0 <= b:
            share = math.log(l0 / a) / math.log(b / a) if b > a else 0.5
            return low + share * (high - low)
    return points[0][1] if l0 < points[0][0] else points[-1][1]


ORDERINGS = (
    Ordering("BatchTopK reconstructs better than TopK (Bussmann 2024)", "batch_topk", "topk"),
    Ordering("BatchTopK about as JumpReLU (Bussmann 2024)", "batch_topk", "jumprelu", tolerance=0.05),
    Ordering("TopK better than ReLU at equal L0 (Gao 2024)", "topk", "standard"),
    Ordering("Gated better than ReLU at equal L0 (Rajamanoharan 2024)", "gated", "standard"),
    Ordering("Gated does not shrink, ReLU does", "gated", "standard", "gamma", distance_from=1.0),
    Ordering("JumpReLU does not shrink, ReLU does", "jumprelu", "standard", "gamma", distance_from=1.0),
    Ordering("JumpReLU at least Gated (Rajamanoharan 2024)", "jumprelu", "gated", tolerance=0.02),
    Ordering("JumpReLU at least TopK (Rajamanoharan 2024)", "jumprelu", "topk", tolerance=0.02),
    Ordering("Matryoshka pays with FVU (Bussmann 2025)", "matryoshka", "batch_topk", sign=1),
    Ordering(
        "Matryoshka: similar loss of the host (Bussmann 2025)", "matryoshka", "batch_topk", "ce_recovered", 1, 0.01
    ),
    Ordering(
        "Feature Choice has fewer dead latents than TopK (Ayonrinde 2024)",
        "feature_choice",
        "topk",
        "dead",
        tolerance=1e-9,
    ),
    Ordering("Variational reconstructs worse than TopK (negative result)", "variational", "topk", sign=1),
    Ordering("Variational has more dead latents than TopK (negative result)", "variational", "topk", "dead", 1),
    Ordering("top-AFA at least BatchTopK (Lee 2025)", "top_afa", "batch_topk", tolerance=0.02),
    Ordering("Bias adaptation about as TopK (Chen 2025)", "gba", "topk", tolerance=0.1),
    Ordering(
        "g-SAE, given gradients: better loss of the host at fixed k (Olmo 2024)",
        "gradient",
        "topk",
        "ce_recovered",
        1,
        variant=GIVEN,
    ),
    Ordering("g-SAE, without gradients at inference", "gradient", "topk", "ce_recovered", 1),
)
# claims that activations without a known answer cannot decide: rows of the toy table
BY_TOY_DATA = (
    ("Matryoshka has less absorption", "Matryoshka, parent and child"),
    ("AbsTopK better than TopK where features have signs", "AbsTopK, signed features"),
)


def judged(lines: Sequence[Line], toys: Sequence[Line] = ()) -> list[tuple[str, ...]]:
    """A tuple of `COLUMNS` for every claim; `toys` are rows of `benchmarks.methods`."""
    seeds = sorted({line["seed"] for line in lines})
    out = []
    for ordering in ORDERINGS:
        found = [d for seed in seeds if (d := ordering.difference(lines, seed)) is not None]
        words = (ordering.claim, f"{ordering.method} with {ordering.baseline}", NAMES[ordering.figure])
        if not found:
            out.append((*words, "", "", "not compared: no two runs at one L0"))
            continue
        count = sum(ordering.holds(difference) for difference in found)
        mean = statistics.fmean(by for by, _ in found)
        out.append((*words, f"{mean:+.4f}", f"{count} of {len(found)}", _word(count, len(found))))
    for claim, title in BY_TOY_DATA:
        for row in toys:
            if row["title"] == title and "pairs" in row:
                right = [share > 0 for share in row["shares"]]
                mean = statistics.fmean(a - b for a, b in row["pairs"])
                out.append(
                    (
                        claim,
                        f"{title} (toy data)",
                        row["figure"],
                        f"{mean:+.4f}",
                        f"{sum(right)} of {len(right)}",
                        _word(sum(right), len(right)),
                    )
                )
    return out


NAMES = {"fvu": "FVU", "gamma": "distance of γ from 1", "dead": "dead share", "ce_recovered": "CE recovered"}


def _word(count: int, of: int) -> str:
    return "yes" if count == of else "no" if count == 0 else "on some seeds"
