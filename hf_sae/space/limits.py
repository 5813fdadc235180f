"""What may be asked of the server: every number, text and name that comes from outside is bounded here, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EngineBusyError


MAX_QUERY = 1000  # characters of a search
MAX_TEXT = 8000  # characters of a text that the host reads; tokens are bounded by the host's own context
MAX_TEXTS = 16  # of one side of a contrast
MAX_HITS = 100
MAX_TOP = 20  # latents per token
MAX_FEATURE = 2**31 - 1
MAX_NEW_TOKENS = 256
MAX_STRENGTH = 100.0
MAX_NAME = 200

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PART = re.compile(r"[\w.=+-]+", re.ASCII)


class RequestError(ValueError):
    """Something that was asked for cannot be given; its words are for the person who asked."""


@dataclass(frozen=True)
class Place:
    """Where a visitor's autoencoder lies on the Hub.

    Args:
        repo (`str`): `user/repo`.
        subfolder (`str`): inside it, or `""`.
    """

    repo: str
    subfolder: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.subfolder}" if self.subfolder else self.repo


def place(name: Any) -> Place:
    """The place that `user/repo` or `user/repo/folder` (also `user/repo:folder`) names.

    Raises:
        RequestError: for anything else: addresses, paths that lead elsewhere, other characters.
    """
    given = text(name, "sae", MAX_NAME).strip()
    parts = given.replace(":", "/", 1).split("/")
    repo, folder = "/".join(parts[:2]), parts[2:]
    names = [*parts[:2], *folder]
    inside = all(_PART.fullmatch(part) for part in folder) and not any(set(part) <= {"."} for part in names)
    if not (_REPO.fullmatch(repo) and inside and ".." not in given):
        raise RequestError(
            f"{shown(given)} names no autoencoder. Give a repo of the Hub, such as user/repo, or user/repo/folder for one of several."
        )
    return Place(repo, "/".join(folder))


def whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number within bounds; 3.0 is one, `True` and `"3"` are none.

    Raises:
        RequestError: for anything else.
    """
    if not (_number(value) and least <= value <= most and value == int(value)):
        raise RequestError(f"{name} is {shown(value)}: give a whole number from {least:,} to {most:,}.")
    return int(value)


def real(value: Any, name: str, least: float, most: float) -> float:
    """A finite number within bounds.

    Raises:
        RequestError: for anything else.
    """
    if not (_number(value) and least <= value <= most):
        raise RequestError(f"{name} is {shown(value)}: give a number from {least:g} to {most:g}.")
    return float(value)


def _number(value: Any) -> bool:
    # NaN and infinity are outside all bounds; `math.isfinite` would fail for integers that are no float
    return isinstance(value, int | float) and not isinstance(value, bool)


def share(value: Any, name: str) -> float | None:
    """A number from 0 to 1; `None` bounds nothing.

    Raises:
        RequestError: for anything else.
    """
    return None if value is None else real(value, name, 0.0, 1.0)


def text(value: Any, name: str, most: int = MAX_TEXT, empty: bool = False) -> str:
    """A text of bounded length.

    Raises:
        RequestError: if it is none, too long, or, unless `empty`, has nothing in it.
    """
    if not isinstance(value, str):
        raise RequestError(f"{name} is {shown(value)}: give a text.")
    if len(value) > most:
        raise RequestError(f"{name} has {len(value):,} characters, and {most:,} are read at most. Give a part of it.")
    if not value.strip() and not empty:
        raise RequestError(f"{name} is empty. Type something first.")
    return value


def readable(value: Any, name: str, most: int = MAX_TEXT, empty: bool = False) -> str:
    """A text of bounded length that a host can read.

    Raises:
        RequestError: as [`text`], and for half a character, which no tokenizer takes.
    """
    given = text(value, name, most, empty)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} has half a character (a lone surrogate) at place {error.start + 1}: no host reads that. Take it out."
        ) from error
    return given


def texts(values: Any, name: str) -> list[str]:
    """A list of 1 to 16 texts, together no longer than one may be.

    Raises:
        RequestError: for anything else.
    """
    given = [values] if isinstance(values, str) else values
    if not isinstance(given, Sequence) or not 1 <= len(given) <= MAX_TEXTS:
        raise RequestError(f"{name} is a list of 1 to {MAX_TEXTS} texts.")
    kept = [readable(value, name) for value in given]
    text("".join(kept), name)
    return kept


def one_of(value: Any, name: str, allowed: Sequence[str]) -> str:
    """One of some words.

    Raises:
        RequestError: for another.
    """
    if value not in allowed:
        raise RequestError(f"{name} is {shown(value)}: give one of {', '.join(allowed)}.")
    return str(value)


def shown(value: Any) -> str:
    """A value inside an error, short and on one line."""
    said = repr(value)
    return said if len(said) <= 80 else f"{said[:77]}…"


class words:  # noqa: N801
    """Within it, typed errors of the library become a [`RequestError`] with the same words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # ValueError: the typed errors, and what the steering engine says of latents and strengths that cannot be
        if isinstance(error, ValueError | OSError | EngineBusyError):
            raise RequestError(str(error)) from error
