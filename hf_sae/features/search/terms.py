"""What somebody typed as a query of SQLite's full-text search: every term quoted, so that nothing in it is syntax."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from ..schema import storable
from .scripts import cut


MAX_QUERY = 1000  # characters of a query that are looked at
MAX_TERMS = 24
# how SQLite cuts text into words, and words to stems; marks belong to words, as vowels of Hindi and Thai are
TOKENIZE = "porter unicode61 remove_diacritics 2 categories ''L* N* Co Mn Mc''"
_PARTS = re.compile(r'"([^"]*)"|([^\s"]+)')


@dataclass(frozen=True)
class Terms:
    """The terms of a query.

    Args:
        terms (`tuple[str, ...]`): words, and phrases that stood in double quotes.
    """

    terms: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Terms:
        """The terms of what was typed: at most 24 different ones, from its first 1,000 characters.

        A term needs a letter or digit; one of a script without spaces is a phrase of its characters. `os.path` is the phrase "os path": that is how text is cut into words.
        """
        found = (phrase or word for phrase, word in _PARTS.findall(plain(text)))
        kept = [cut(term) for term in found if any(character.isalnum() for character in term)]
        return cls(tuple(dict.fromkeys(kept))[:MAX_TERMS])

    def within(self, docs: Mapping[str, int], budget: int, least: int = 0) -> Terms:
        """Those that can be looked for in good time: of the words that many features have, the rarest.

        Args:
            docs (`dict`): by stem, how many features have a word; stems that few have are not in it.
            budget (`int`): how many features the words that are kept may have together.
            least (`int`): so many are kept in any case.
        """
        if not docs or not self.terms:
            return self
        costs = [docs.get(stems[0], 0) if len(stems) == 1 else 0 for stems in self.stems()]
        kept: set[int] = set()
        for place in sorted(range(len(costs)), key=costs.__getitem__):
            if costs[place] > max(budget, 0) and len(kept) >= least:
                break
            budget -= costs[place]
            kept.add(place)
        return Terms(tuple(term for place, term in enumerate(self.terms) if place in kept))

    def stems(self) -> list[list[str]]:
        """Of each term, as SQLite cuts it."""
        found: list[list[str]] = [[] for _ in self.terms]
        with closing(sqlite3.connect(":memory:")) as database:
            database.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, tokenize = '{TOKENIZE}')")
            database.execute("CREATE VIRTUAL TABLE stems USING fts5vocab(words, instance)")
            database.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", enumerate(self.terms))
            for place, stem in database.execute("SELECT doc, term FROM stems"):
                found[place].append(stem)
        return found

    @property
    def all(self) -> str:
        """An expression that wants every term."""
        return " AND ".join(map(_quoted, self.terms))

    @property
    def any(self) -> str:
        """An expression that wants one term at least."""
        return " OR ".join(map(_quoted, self.terms))


def plain(text: str) -> str:
    """The first 1,000 characters with control characters as spaces, in what UTF-8 can hold."""
    kept = storable(text[:MAX_QUERY])
    return "".join(character if character.isprintable() else " " for character in kept)


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'
