"""Rules such as "the token `False` after `=`": which tokens they mean, how they read, how much they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .vocabulary import TokenSet, listing, quoted
from .windows import Windows


# signs that people look for by another name than their own
_MEANINGS = ((re.compile(r"\"{3}|'{3}"), "docstring quotes"),)


@dataclass(frozen=True)
class Rule:
    """Says of every token of a text whether a latent fires on it. What is `None` or empty makes no difference.

    Args:
        here ([`TokenSet`], *optional*): the token itself.
        before (`tuple` of [`TokenSet`]): the tokens before it, the nearest last.
        line ([`TokenSet`], *optional*): the first word of its line, which has to be another token.
        following ([`TokenSet`], *optional*): the token after it.
    """

    here: TokenSet | None = None
    before: tuple[TokenSet, ...] = ()
    line: TokenSet | None = None
    following: TokenSet | None = None

    def matches(self, windows: Windows) -> np.ndarray:
        """`[n, width]`: the tokens that it means; special ones never."""
        found = windows.counted.copy()
        if self.here is not None:
            found &= self.here.mask[windows.numbers]
        for by, tokens in enumerate(reversed(self.before), 1):
            found &= tokens.mask[windows.before(by)]
        if self.line is not None:
            found &= self.line.mask[windows.line_starts]
        if self.following is not None:
            found &= self.following.mask[windows.before(-1)]
        return found

    def fires(self, windows: Windows) -> np.ndarray:
        """`[n]`: whether it means any token of a context."""
        return np.any(self.matches(windows), axis=1)

    def and_(self, other: Rule) -> Rule:
        """What both ask for; they do not speak of the same place."""
        return Rule(
            self.here or other.here,
            self.before or other.before,
            self.line or other.line,
            self.following or other.following,
        )

    @property
    def parts(self) -> int:
        """How many places it speaks of, and how many tokens it lists beyond the first of each."""
        sets = [tokens for tokens in (self.here, *self.before, self.line, self.following) if tokens is not None]
        return len(sets) + sum(max(len(tokens.texts) - 1, 0) for tokens in sets)

    @property
    def text(self) -> str:
        """In plain words."""
        words = "" if self.here is None else self.here.name
        if self.before:
            words = f"{words or 'what comes'} after {_preceding(self.before)}"
        if self.line is not None:
            words = f"{words or 'words'} on a line that starts with {_alternatives(self.line)}"
        if self.following is not None:
            words = f"{words or 'what comes'} before {_alternatives(self.following)}"
        return words + "".join(f" ({meaning})" for sign, meaning in _MEANINGS if sign.search(words))


def _preceding(before: tuple[TokenSet, ...]) -> str:
    if all(len(tokens.texts) == 1 for tokens in before):
        return quoted("".join(tokens.texts[0] for tokens in before))
    return " and ".join(map(_alternatives, before))


def _alternatives(tokens: TokenSet) -> str:
    return listing(tokens.texts) if tokens.texts else tokens.name
