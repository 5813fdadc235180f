"""Rules that a latent may follow, read off the tokens on which it fires most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .latent import Latent
from .rules import Rule
from .vocabulary import ABSENT, TokenSet, Vocabulary
from .windows import Windows


MOST_LISTED = 4  # tokens that a label lists
_HERE, _SPELT, _ENDS, _BEFORE, _PAIRS, _LINES, _PROMOTED = 8, 3, 3, 6, 4, 3, 3


class Candidates:
    """Rules about one place, for a latent; those about two are made of them.

    Args:
        latent ([`Latent`]): which.
        windows ([`Windows`]): contexts to make rules from.
        weights (`ndarray`): `[n, width]`, how much each token counts; 0 where it does not fire.
    """

    def __init__(self, latent: Latent, windows: Windows, weights: np.ndarray) -> None:
        self.latent, self.windows, self.weights = latent, windows, weights
        self.vocabulary: Vocabulary = windows.vocabulary
        self.places = weights > 0

    def tokens(self) -> list[Rule]:
        """Single tokens on which it fires."""
        return [Rule(here=self.vocabulary.one(number)) for number in self._common(self.windows.numbers, _HERE)]

    def kinds(self) -> list[Rule]:
        """Kinds of tokens: spellings of a word, beginnings, endings, numbers, brackets and so on."""
        numbers = self._common(self.windows.numbers, max(_SPELT, _ENDS))
        spelt = [self.vocabulary.spelt(number) for number in numbers[:_SPELT]]
        sets = [*spelt, *(ends for number in numbers[:_ENDS] for ends in self.vocabulary.ends(number))]
        return [Rule(here=tokens) for tokens in _different([*sets, *self._classes(self.windows.numbers)])]

    def preceded(self) -> list[Rule]:
        """Single tokens that stand before those on which it fires."""
        return [Rule(before=(self.vocabulary.one(n),)) for n in self._common(self.windows.before(1), _BEFORE)]

    def surroundings(self) -> list[Rule]:
        """Other things that may stand around: two tokens before, kinds of tokens before, the first word of the line."""
        lines = self._common(self.windows.line_starts, _LINES)
        return [
            *(Rule(before=tuple(map(self.vocabulary.one, pair))) for pair in self._pairs()),
            *(Rule(before=(tokens,)) for tokens in self._classes(self.windows.before(1))),
            *(Rule(line=self.vocabulary.one(number)) for number in lines),
        ]

    def promoted(self) -> Rule | None:
        """What comes before the tokens that it promotes."""
        numbers = self.latent.promoted[:_PROMOTED]
        return Rule(following=self.vocabulary.listed(numbers)) if numbers else None

    def _common(self, numbers: np.ndarray, most: int) -> list[int]:
        """The tokens at places where it fires that count most."""
        totals = np.bincount(numbers[self.places], self.weights[self.places], minlength=2)
        totals[ABSENT] = 0
        order = np.argsort(-totals, kind="stable")[:most]
        return [int(number) for number in order if totals[number] > 0]

    def _classes(self, numbers: np.ndarray) -> Iterator[TokenSet]:
        """Those that hold for a third of what counts at least."""
        at, weights = numbers[self.places], self.weights[self.places]
        total = weights.sum()
        return (tokens for tokens in self.vocabulary.classes if weights[tokens.mask[at]].sum() * 3 >= total)

    def _pairs(self) -> list[tuple[int, int]]:
        second, first = (self.windows.before(by)[self.places].astype(np.int64) for by in (1, 2))
        known = (first != ABSENT) & (second != ABSENT)
        keys, inverse = np.unique(first[known] << 32 | second[known], return_inverse=True)
        totals = np.bincount(inverse, self.weights[self.places][known], minlength=len(keys))
        order = np.argsort(-totals, kind="stable")[:_PAIRS]
        return [(int(keys[place] >> 32), int(keys[place] & 0xFFFFFFFF)) for place in order]


def lists(vocabulary: Vocabulary, rules: Sequence[Rule]) -> list[Rule]:
    """The first two, three and four of rules about single tokens, each as one rule."""
    found = []
    for size in range(2, min(MOST_LISTED, len(rules)) + 1):
        sets = [rule.here or rule.before[0] for rule in rules[:size]]
        tokens = vocabulary.listed([int(np.flatnonzero(one.mask)[0]) for one in sets])
        found.append(Rule(here=tokens) if rules[0].here else Rule(before=(tokens,)))
    return found


def _different(sets: Sequence[TokenSet | None]) -> list[TokenSet]:
    return list({tokens.name: tokens for tokens in sets if tokens is not None}.values())
