"""`NGramLabeller`: the shortest rule about tokens that tells where a latent fires. No model, no key, no network.

In the spirit of N2G (Foote et al. 2023, https://arxiv.org/abs/2305.19911), which mines patterns from activating contexts; here
rules are compared by how well they tell firing tokens from others, and are worded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .candidates import Candidates, lists
from .labels import Label
from .latent import Latent
from .rules import Rule
from .vocabulary import listing
from .windows import Windows


CLEAR = 0.3  # fit below which no rule is claimed
DENSE = 0.5  # share of the tokens from which on a latent fires "on most tokens"
_PRICE = 0.04  # of fit, for each further place or token that a rule speaks of
_REACH = 3  # rules about the token itself that are combined with others
_WORDS, _LONGEST_WORD = 3, 20
_HAIR = 1e-9  # of rounding
_PRECISE, _SEEN = 0.25, 2  # precision of a token that is worth listing, and places where it was seen


@dataclass(frozen=True)
class RuleDetector:
    """A latent fires in a context if the rule means any of its tokens."""

    rule: Rule

    def fires(self, contexts: Windows) -> list[bool | None]:
        """`[n]`."""
        return self.rule.fires(contexts).tolist()


class Everywhere:
    """A latent that fires on most tokens fires in every context."""

    def fires(self, contexts: Windows) -> list[bool | None]:
        """`[n]`."""
        return [True] * len(contexts)


class NGramLabeller:
    """Labels by rules: a token, the tokens before it, kinds of tokens, the first word of a line, or what comes next.

    Of the rules that the strongest tokens suggest, the one with the best fit is taken: the harmonic mean of

    * *recall*, the share of the activation that falls on tokens which the rule means, and
    * *precision*, the lower one of: the share of the tokens it means on which the latent fires, in contexts where it fires
      anywhere; and the number of tokens it should mean by the latent's density over the number that it means in background text,

    less a small price for each further thing that the rule speaks of. A rule with a poor fit is not claimed: the label says so,
    or names the promoted tokens where the latent does fire before them.
    """

    method = "n-gram rule"
    model: str | None = None
    revision: str | None = None
    prompt: str | None = "rules-1"
    batch_size = 64

    def label(self, latents: Sequence[Latent]) -> list[Label | None]:
        """A label for each; `None` where there is no context to make one from."""
        return [self._label(latent) for latent in latents]

    def _label(self, latent: Latent) -> Label | None:
        if not latent.seen.fires.any():
            return None
        if latent.density > DENSE:
            return Label(f"fires on most tokens ({latent.density:.0%})", Everywhere())
        best = _Search(latent).best()
        text = worded(best.rule, latent.firing)
        return Label(text if best.fit >= CLEAR else f"no clear rule; often {text}", RuleDetector(best.rule))


def worded(rule: Rule, firing: Windows) -> str:
    """A rule in plain words, with the words that pieces of words are of, as in the contexts where the latent fires."""
    text = f"{rule.text}, which it promotes" if rule.following is not None else rule.text
    if rule.here is None or (not rule.here.texts and "token" not in rule.here.name):
        return text
    found = _words(rule.matches(firing) & (firing.acts != 0), firing)
    return f"{text} (as in {listing(found, 'and')})" if found else text


def _words(places: np.ndarray, firing: Windows) -> list[str]:
    """The commonest words around tokens; none where most of the tokens are whole words."""
    found = [_word(firing, row, place) for row, place in np.argwhere(places).tolist()]
    pieces = [word for word in found if word is not None]
    if 2 * len(pieces) < len(found):
        return []
    short = Counter(word for word in pieces if len(word) <= _LONGEST_WORD)
    return [word for word, _ in short.most_common(_WORDS)]


def _word(firing: Windows, row: int, place: int) -> str | None:
    """The word that a token is a piece of, in lower case."""
    before, (token,), after = (
        [firing.vocabulary.texts[number] for number in part]
        for part in np.split(firing.numbers[row], [place, place + 1])
    )
    head = re.search(r"[^\W\d_]*\Z", "".join(before)) if token[:1].isalpha() else None
    tail = re.match(r"[^\W\d_]*", "".join(after)) if token[-1:].isalpha() else None
    word = (head[0] if head else "") + token.strip() + (tail[0] if tail else "")
    return word.casefold() if word != token.strip() and word.isalpha() else None


@dataclass(frozen=True, eq=False)
class _Tried:
    """A rule, the tokens that it means near (of the contexts to label from) and far (of the background), and how it fares."""

    rule: Rule
    near: np.ndarray
    far: np.ndarray
    recall: float
    precision: float
    fit: float


class _Search:
    """The best rule for one latent."""

    def __init__(self, latent: Latent) -> None:
        self.windows, self.background = latent.firing, latent.background.windows
        acts = np.where(self.windows.counted, np.abs(self.windows.acts), 0).astype(np.float64)
        # a document with a hundred times the activation of another counts ten times as much: files repeat themselves
        _, document = np.unique(self.windows.documents, return_inverse=True)
        totals = np.bincount(document, acts.sum(1))[document]
        weights = acts / np.sqrt(np.where(totals > 0, totals, 1))[:, None]
        self.candidates = Candidates(latent, self.windows, weights)
        self.weights, self.firing = (weights / weights.sum()).ravel(), (acts > 0).ravel()
        # a document that the label is tested on says nothing about how common a token is
        known = latent.background.outside(latent.held_out.documents)[:, None] & self.background.counted
        self.known = known.ravel()
        self.expected = latent.density * self.known.sum()

    def best(self) -> _Tried:
        """The rule to tell."""
        of, vocabulary = self.candidates, self.windows.vocabulary
        single = self._tried(of.tokens())
        precise = [tried.rule for tried in _by_recall(single) if self._listable(tried)]
        here = [*single, *self._tried(of.kinds()), *self._tried(lists(vocabulary, precise))]
        before = self._tried(of.preceded())
        listed = self._tried(lists(vocabulary, [tried.rule for tried in _by_recall(before)]))
        around = [*before, *listed, *self._tried(of.surroundings())]
        ends = [promoted for promoted in [of.promoted()] if promoted is not None]
        found = [*here, *around, *self._tried(ends)]
        starts = dict.fromkeys([*sorted(here, key=lambda tried: -tried.fit)[:_REACH], *_by_recall(here)[:_REACH]])
        found += [self._both(one, other) for one in starts for other in around]
        most = max(tried.fit for tried in found)
        equals = [tried for tried in found if tried.fit >= most - _HAIR]
        return min(equals, key=lambda tried: (len(tried.rule.text), tried.rule.text))

    def _listable(self, tried: _Tried) -> bool:
        """Whether a token is worth a place in a list: it is seen more than once, and the latent fires on it often enough."""
        return tried.precision >= _PRECISE and int(np.count_nonzero(tried.near & self.firing)) >= _SEEN

    def _tried(self, rules: Iterable[Rule]) -> list[_Tried]:
        return [
            self._measured(rule, rule.matches(self.windows).ravel(), rule.matches(self.background).ravel())
            for rule in rules
        ]

    def _both(self, one: _Tried, other: _Tried) -> _Tried:
        return self._measured(one.rule.and_(other.rule), one.near & other.near, one.far & other.far)

    def _measured(self, rule: Rule, near: np.ndarray, far: np.ndarray) -> _Tried:
        recall = float(self.weights[near].sum())
        meant, right = np.count_nonzero(near), np.count_nonzero(near & self.firing)
        common = np.count_nonzero(far & self.known)
        # one more than expected: what is seen once in a small text says little about how common it is
        precision = min(right / max(meant, 1), (self.expected * recall + 1) / max(common, 1), 1.0)
        harmonic = 2 * recall * precision / (recall + precision) if recall else 0.0
        return _Tried(rule, near, far, recall, precision, harmonic - _PRICE * (rule.parts - 1))


def _by_recall(tried: Iterable[_Tried]) -> list[_Tried]:
    return sorted(tried, key=lambda one: -one.recall)
