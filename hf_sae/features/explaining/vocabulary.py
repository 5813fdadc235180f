"""The tokens that a dataset shows, numbered anew, and sets of them that can be named in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...terminal import visible


ABSENT = 0  # the number of no token: outside a window
_MAX_TOKEN = 40  # characters of a token that a label shows
_COUNTED = {" ": "space", "\t": "tab", "\n": "newline"}

# which tokens belong together whatever they are, and what such tokens are called; the first that says enough is taken
_CLASSES: tuple[tuple[str, str], ...] = (
    (r"\s*\d+", "a number"),
    (r"\n[ \t]+", "a newline with an indent"),
    (r"\n+", "a newline"),
    (r"\s*\n\s*", "a line break"),
    (r"[ \t]+", "spaces"),
    (r"\s+", "white space"),
    (r"\s*[\"'`]+", "a quote"),
    (r"\s*[(\[{]+", "an opening bracket"),
    (r"\s*[)\]}]+", "a closing bracket"),
    (r"\s*[+\-*/%=<>!&|^~@]+", "an operator"),
    (r"\s*[^\w\s]+", "punctuation"),
    (r" [^\W\d_]+", "a whole word"),
    (r"\s*[^\W\d_a-z]{2,}", "letters in capitals"),
    (r"\s*[A-Z][a-z]+", "a capitalised word"),
    (r"\w+", "a part of a word"),
    (r" ?_+", "underscores"),
    (r"(?s).*[^\x00-\x7f].*", "a character beyond ASCII"),
)


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Some tokens and what to call them.

    Args:
        name (`str`): in plain words, such as `the token " import"`.
        mask (`ndarray`): `[vocabulary]`, which numbers are in it.
        texts (`tuple[str, ...]`): of its tokens, where they are listed one by one.
    """

    name: str
    mask: np.ndarray
    texts: tuple[str, ...] = ()


class Vocabulary:
    """Every token of a dataset by a number of its own, from 1; 0 is no token.

    Args:
        ids (`ndarray`): `[n]`, token ids, each once.
        texts (`list` of `str`): their texts.
    """

    def __init__(self, ids: np.ndarray, texts: Sequence[str]) -> None:
        order = np.argsort(ids, kind="stable")
        self.ids, self.texts = ids[order], ["", *(texts[place] for place in order)]
        self._sets: dict[tuple[str, ...], TokenSet | None] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """The number of each token id."""
        return np.searchsorted(self.ids, ids) + 1

    @cached_property
    def breaks(self) -> np.ndarray:
        """`[vocabulary]`: tokens with a line break in them."""
        return self._mask(lambda text: "\n" in text)

    @cached_property
    def blank(self) -> np.ndarray:
        """`[vocabulary]`: tokens that are white space only, and no token."""
        return self._mask(lambda text: not text.strip())

    @cached_property
    def classes(self) -> list[TokenSet]:
        """The sets that have a name and at least two tokens here."""
        found = []
        for pattern, name in _CLASSES:
            mask = self._mask(lambda text, compiled=re.compile(pattern): compiled.fullmatch(text) is not None)
            if mask.sum() > 1:
                found.append(TokenSet(name, mask))
        return found

    @cached_property
    def _folded(self) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for number, text in enumerate(self.texts[1:], 1):
            groups.setdefault(fold(text), []).append(number)
        return groups

    def one(self, number: int) -> TokenSet:
        """A token by itself."""
        return self.listed((number,))

    def listed(self, numbers: Sequence[int]) -> TokenSet:
        """Some tokens, named one by one in the order given."""
        mask = np.zeros(len(self), dtype=bool)
        mask[list(numbers)] = True
        texts = tuple(dict.fromkeys(self.texts[number] for number in numbers))
        kind = "the token " if len(texts) == 1 and not _is_white(texts[0]) else ""
        return TokenSet(kind + listing(texts), mask, texts)

    def spelt(self, number: int) -> TokenSet | None:
        """All spellings of a word, with and without spaces and capitals; `None` where there is only one."""
        word = fold(self.texts[number])
        same = self._folded[word]
        if len(same) < 2 or not word.isalpha():
            return None
        mask = np.zeros(len(self), dtype=bool)
        mask[same] = True
        return TokenSet(f'the word "{shown(word)}" in any spelling', mask, (word,))

    def ends(self, number: int) -> list[TokenSet]:
        """Tokens with the same beginning, or the same ending, of 2 to 4 letters; the longest of those that mean the same."""
        word, found = fold(self.texts[number]), []
        for verb, test in (("starts with", str.startswith), ("ends with", str.endswith)):
            longer: list[TokenSet] = []
            for size in range(min(4, len(word) - 1), 1, -1):
                part = word[:size] if verb == "starts with" else word[-size:]
                tokens = self._affix(verb, part, test) if part.isalpha() else None
                if tokens is not None and not any(np.array_equal(tokens.mask, other.mask) for other in longer):
                    longer.append(tokens)
            found += longer
        return found

    def _affix(self, verb: str, part: str, test: Callable[[str, str], bool]) -> TokenSet | None:
        key = (verb, part)
        if key not in self._sets:
            mask = np.zeros(len(self), dtype=bool)
            for word, numbers in self._folded.items():
                if test(word, part):
                    mask[numbers] = True
            several = len({fold(self.texts[number]) for number in np.flatnonzero(mask)}) > 1
            self._sets[key] = TokenSet(f'a token that {verb} "{part}"', mask) if several else None
        return self._sets[key]

    def _mask(self, test: Callable[[str], bool]) -> np.ndarray:
        mask = np.array([test(text) for text in self.texts], dtype=bool)
        mask[ABSENT] = bool(test(""))
        return mask


def fold(text: str) -> str:
    """A token without the space around it, in lower case; white space alone stays as it is."""
    return text.strip().casefold() or text


def shown(text: str) -> str:
    """A token as a label shows it: nothing in it acts on a terminal, and it is not long."""
    text = visible(text)
    return text if len(text) <= _MAX_TOKEN else text[: _MAX_TOKEN - 1] + "…"


def quoted(text: str) -> str:
    """A token in quotes; white space in words: `a newline and 8 spaces`."""
    if _is_white(text):
        return _white([_runs(text)])
    mark = "'" if '"' in text else '"'
    return f"{mark}{shown(text)}{mark}"


def listing(texts: Sequence[str], last: str = "or") -> str:
    """Tokens as alternatives, or with another word between the last two: `"if" or "elif"`, `a newline followed by 4, 8 or 12 spaces`."""
    white = [_runs(text) for text in texts if _is_white(text)]
    words = [text for text in texts if not _is_white(text)]
    # of a word that is there with and without a space, one is enough to read
    names = list(dict.fromkeys(quoted(text.strip() if text.strip() in texts else text) for text in words))
    alike = len(white) > 1 and len({(*runs[:-1], runs[-1][0]) for runs in white}) == 1
    return _joined([*names, _white(white)] if alike else [*names, *(_white([runs]) for runs in white)], last)


def _is_white(text: str) -> bool:
    return bool(text) and set(text) <= _COUNTED.keys()


def _runs(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r" +|\t+|\n+", text))


def _white(several: Sequence[tuple[str, ...]]) -> str:
    """White space that differs in the length of the last run only, such as 4, 8 or 12 spaces."""
    *start, _ = several[0]
    lengths = sorted({len(runs[-1]) for runs in several})
    kind = _COUNTED[several[0][-1][0]]
    last = f"a {kind}" if lengths == [1] else f"{_joined(list(map(str, lengths)), 'or')} {kind}s"
    parts = [f"a {_COUNTED[run[0]]}" if len(run) == 1 else f"{len(run)} {_COUNTED[run[0]]}s" for run in start]
    return " followed by ".join([*parts, last])


def _joined(names: Sequence[str], last: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
