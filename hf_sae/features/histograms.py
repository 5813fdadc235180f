"""Histograms of many latents whose range need not be known before: it doubles when a value passes it.

* Counts are exact, and depend neither on the order of the values nor on how they are split into batches: the width of a
  bin is the power of two that puts the strongest value so far into the upper half of the bins, and two narrow bins make
  one wide bin.
* Memory: `1024` bytes a row, however many values there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


BINS = 64  # on each side of zero
_LOG_BINS = 6
_UNSET, _SMALLEST = -(2**15), -100  # exponents; below 2**-100 an edge would be no normal 32-bit number


@dataclass(frozen=True)
class Histogram:
    """One row, without empty bins at its ends.

    Args:
        counts (`ndarray`): `[bins]`.
        edges (`ndarray`): `[bins + 1]`, ascending, zero among them; both empty where there was no value. A value on an
            edge is in the bin further from zero.
    """

    counts: np.ndarray
    edges: np.ndarray

    def place(self, values: np.ndarray) -> np.ndarray:
        """Index of the bin of each value, for values that were counted."""
        zero = int(np.searchsorted(self.edges, 0.0))
        width = self.edges[1] - self.edges[0]
        steps = np.floor(np.abs(values.astype(np.float64)) / width).astype(np.int64)
        return np.where(values < 0, zero - 1 - steps, zero + steps)


class GrowingHistograms:
    """A histogram of the non-zero values of each of `n` rows.

    Args:
        n (`int`): how many rows.
    """

    def __init__(self, n: int) -> None:
        self.counts = torch.zeros(n, 2, BINS, dtype=torch.long)  # of positive values, of negative ones
        self.exponents = torch.full((n,), _UNSET)  # every value is below 2 ** exponent

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Counts values.

        Args:
            rows (`Tensor`): `[m]`, which row each value belongs to.
            values (`Tensor`): `[m]`, finite and not zero.
        """
        if not len(rows):
            return
        mantissas, exponents = torch.frexp(values.double().abs())
        largest = torch.full_like(self.exponents, _UNSET).scatter_reduce(0, rows, exponents.long(), "amax")
        self._grow(torch.where(largest == _UNSET, _UNSET, largest.clamp(min=_SMALLEST)))
        # shifts, not products: a value on an edge must not be rounded across it
        bins = (mantissas * BINS).long() >> (self.exponents[rows] - exponents).clamp(max=_LOG_BINS + 1)
        keys = (rows * 2 + (values < 0)) * BINS + bins
        self.counts.view(-1).scatter_add_(0, keys, torch.ones_like(keys))

    def merge(self, other: GrowingHistograms) -> None:
        """Adds the counts of other values."""
        self._grow(other.exponents)
        wide = GrowingHistograms(len(self.exponents))
        wide.counts, wide.exponents = other.counts.clone(), other.exponents
        wide._grow(self.exponents)
        self.counts += wide.counts

    def row(self, index: int) -> Histogram:
        """The histogram of one row."""
        positive, negative = self.counts[index].numpy()
        used = [int(side.nonzero()[0].max(initial=-1)) + 1 for side in (positive, negative)]
        if not any(used):
            return Histogram(np.empty(0, np.int64), np.empty(0))
        width = 2.0 ** (int(self.exponents[index]) - _LOG_BINS)
        counts = np.concatenate([negative[: used[1]][::-1], positive[: used[0]]])
        return Histogram(counts, np.arange(-used[1], used[0] + 1) * width)

    def _grow(self, exponents: Tensor) -> None:
        new = torch.maximum(self.exponents, exponents)
        rows = ((new > self.exponents) & (self.exponents != _UNSET)).nonzero().squeeze(1)
        shift = (new - self.exponents)[rows].clamp(max=_LOG_BINS)
        target = torch.arange(BINS)[None, :] >> shift[:, None]
        before = self.counts[rows]
        self.counts[rows] = torch.zeros_like(before).scatter_add(-1, target[:, None].expand_as(before), before)
        self.exponents = new
