"""Sums of 32-bit numbers without rounding: the same whatever the order, and however they are split over processes."""

from __future__ import annotations

import torch
from torch import Tensor


_WORD, _MANTISSA = 32, 24  # bits
_LOWEST = 176  # a sum is a whole number of 2**-176, less than any 32-bit float needs
_WORDS = 10  # that many words hold the largest float of 32 bits, with room for carries


class ExactSums:
    """A sum for each of `n` rows, as one long whole number in words of 32 bits.

    Args:
        n (`int`): how many rows.
    """

    def __init__(self, n: int) -> None:
        self.words = torch.zeros(
            n, _WORDS, dtype=torch.long
        )  # the lowest first; each below 2**32, the last has the sign

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Adds values.

        Args:
            rows (`Tensor`): `[m]`, which row each value belongs to.
            values (`Tensor`): `[m]`, float32 and finite.
        """
        mantissas, exponents = torch.frexp(values.double())
        whole = (mantissas.abs() * 2**_MANTISSA).long()
        place = exponents.long() + (_LOWEST - _MANTISSA)
        wide = whole << (place % _WORD)
        keys = rows * _WORDS + place // _WORD
        for key, part in ((keys, wide & (2**_WORD - 1)), (keys + 1, wide >> _WORD)):
            self.words.view(-1).scatter_add_(0, key, torch.where(values < 0, -part, part))
        self._carry()

    def merge(self, other: ExactSums) -> None:
        """Adds the sums of other values."""
        self.words += other.words
        self._carry()

    def mean(self, row: int, count: int) -> float:
        """The sum of a row over a count, rounded once; 0 where the count is 0."""
        total = sum(word << (_WORD * place) for place, word in enumerate(self.words[row].tolist()))
        return total / (max(count, 1) << _LOWEST)

    def _carry(self) -> None:
        for place in range(_WORDS - 1):
            over = self.words[:, place] >> _WORD
            self.words[:, place] -= over << _WORD
            self.words[:, place + 1] += over
