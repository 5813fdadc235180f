"""Whether a mean over tokens differs from zero, where only documents are independent; and what remains of many such tests.

The tokens of a document resemble each other, so a document is one observation, whatever its length. The mean change per token
is a ratio of two sums over documents, `θ = Σ D_g / Σ n_g`; its standard error comes from the documents' deviations
`D_g - θ n_g`, each as if its own document had been left out of `θ` (the jackknife, CR3), and its degrees of freedom fall
where a few long documents decide (Bell and McCaffrey 2002, "Bias reduction in standard errors for linear regression with
multi-stage samples"). A permutation of signs would need millions of draws for a p-value that survives thousands of latents;
this needs sums only.

Simulated with 10 to 30 documents of equal and very unequal lengths, tokens independent or all alike within a document, 5 % tests
are wrong in at most 5.4 % of cases, and in fewer where few documents change; where changes are as skewed as an exponential
distribution, in up to 10 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .bootstrap import LEVEL


_STEPS = 300  # of a continued fraction that takes about sqrt(df)
_TINY = 1e-300


@dataclass(frozen=True)
class Clusters:
    """The documents of a sample as clusters of tokens.

    Args:
        sizes (`Tensor`): `[documents]`, tokens of each, fp64.
    """

    sizes: Tensor

    @property
    def tokens(self) -> float:
        """Number of tokens."""
        return float(self.sizes.sum())

    @property
    def weights(self) -> Tensor:
        """`[documents]`, by what each squared deviation counts: `1 / (1 - n_g / N)²`; zero for a single document."""
        return self._leverage.square()

    @property
    def _leverage(self) -> Tensor:
        room = 1 - self.sizes / self.tokens
        return torch.where(room > 0, 1 / torch.where(room > 0, room, 1.0), 0.0)

    @property
    def degrees_of_freedom(self) -> float:
        """Of the squared standard error: one less than the documents where all are equally long, fewer otherwise.

        `N² / (Σ n² + ((Σ v n²)² - Σ v² n⁴) / N²)` with `v = 1 / (1 - n / N)`: Bell and McCaffrey's for the mean of
        independent tokens.
        """
        n, v, total = self.sizes, self._leverage, self.tokens
        if len(n) < 2:
            return 0.0
        spread = (v * n.square()).sum().square() - (v.square() * n.pow(4)).sum()
        return float(total**2 / (n.square().sum() + spread / total**2))

    def standard_error(self, total: Tensor, squares: Tensor, products: Tensor) -> Tensor:
        """Of the mean change per token, from sums over documents.

        Args:
            total (`Tensor`): `Σ D_g`, of any shape.
            squares (`Tensor`): `Σ w_g D_g²`, of the same shape.
            products (`Tensor`): `Σ w_g D_g n_g`.
        """
        theta = total / self.tokens
        constant = (self.weights * self.sizes.square()).sum()
        return (squares - 2 * theta * products + theta.square() * constant).clamp_min(0).sqrt() / self.tokens


def two_sided_p(t: Tensor, df: float) -> Tensor:
    """The probability of a larger `|t|` under Student's distribution, accurate far into the tail; `t` is fp64."""
    x = df / (df + t.double().square())  # 0 for an infinite t
    return _incomplete_beta(x, df / 2, 0.5)


def critical_t(df: float, level: float = LEVEL) -> float:
    """How many standard errors a `level` interval reaches to each side."""
    low, high = 0.0, 1.0
    while two_sided_p(torch.tensor(high), df) > 1 - level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(torch.tensor(middle), df) > 1 - level else (low, middle)
    return high


def benjamini_hochberg(p: Tensor) -> Tensor:
    """The q-values `[n]` of p-values `[n]`: the false discovery rate at which each would just be reported.

    `q_(i) = min over j >= i of p_(j) n / j` (Benjamini and Hochberg 1995).
    """
    n = len(p)
    ordered, order = p.double().sort(descending=True)
    ranks = torch.arange(n, 0, -1, dtype=torch.float64)
    q = torch.empty(n, dtype=torch.float64)
    q[order] = (ordered * n / ranks).cummin(0).values.clamp_max(1) if n else ordered
    return q


def _incomplete_beta(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function `I_x(a, b)`, by its continued fraction where that converges fast."""
    direct = x < (a + 1) / (a + b + 2)
    y = torch.where(direct, x, 1 - x)
    first, second = (torch.where(direct, u, v) for u, v in ((_of(a), _of(b)), (_of(b), _of(a))))
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = (scale + first * y.log() + second * torch.log1p(-y)).exp() / first
    value = front * _continued_fraction(y, first, second)
    value = torch.where(y > 0, value, 0.0)
    return torch.where(direct, value, 1 - value).clamp(0, 1)


def _of(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def _continued_fraction(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Lentz's evaluation of the fraction in `I_x(a, b)` (Abramowitz and Stegun 26.5.8)."""
    c = torch.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value = value * (step := c * d)
        if bool(((step - 1).abs() < 1e-15).all()):
            break
    return value


def _away_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < _TINY, _TINY, x)
