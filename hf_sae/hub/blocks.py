"""Cards in blocks: what is between two markers is made again, everything else belongs to whoever wrote it.

A block stands between `<!-- hf-sae:NAME:start -->` and `<!-- hf-sae:NAME:end -->`. Making a card again replaces what the
blocks hold, wherever they have been moved, and leaves all other text and all keys of the header that are not ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..plain_yaml import load_yaml


# tempered: a start without an end must not reach over the reader's text to the end of a later block
_BLOCK = re.compile(r"<!-- hf-sae:(\w+):start -->(?:(?!<!-- hf-sae:\w+:start -->).)*?<!-- hf-sae:\1:end -->", re.S)
_HEADER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.S)
LISTS = ("datasets", "tags")  # what the reader added to these stays
FIGURES = "model-index"  # the one key that goes where nothing was measured: stale figures are worse than none


@dataclass(frozen=True)
class Part:
    """A stretch of a card: a block with its markers, or text of the reader's (`name` is `None`)."""

    text: str
    name: str | None = None


@dataclass(frozen=True)
class Document:
    """A card as its header and the parts below it."""

    header: dict[str, Any]
    parts: tuple[Part, ...]

    @property
    def generated(self) -> bool:
        """Whether some of it was made here."""
        return any(part.name for part in self.parts)

    @property
    def own(self) -> bool:
        """Whether some of its text is the reader's."""
        return any(part.name is None for part in self.parts)

    def __str__(self) -> str:
        import yaml

        header = yaml.safe_dump(self.header, sort_keys=False, allow_unicode=True, width=1000).strip()
        body = "\n\n".join(part.text for part in self.parts)
        return "\n".join(["---", header, "---", "", body]).rstrip("\n") + "\n" if self.header else f"{body}\n"


def block(name: str, text: str) -> str:
    """The text of a block with its markers, or nothing where there is no text."""
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    return f"<!-- hf-sae:{name}:start -->\n{text}\n<!-- hf-sae:{name}:end -->" if text.strip() else ""


def parse(text: str) -> Document:
    """A README as header, blocks and the reader's own text.

    Raises:
        CheckpointError: if there is a header that is no YAML mapping.
    """
    header: Any = {}
    if found := _HEADER.match(text):
        text = text[found.end() :]
        try:
            header = load_yaml(found[1]) or {}
        except ValueError as error:
            raise CheckpointError(f"the header of README.md is no YAML: {error}. Mend it or delete it.") from error
        if not isinstance(header, dict):
            raise CheckpointError("the header of README.md is no mapping of keys to values. Mend it or delete it.")
    parts, end, names = [], 0, set()
    for match in _BLOCK.finditer(text):
        parts += [Part(text[end : match.start()].strip("\r\n"))]
        parts += [Part(match[0], match[1])] if match[1] not in names else []
        names.add(match[1])
        end = match.end()
    parts += [Part(text[end:].strip("\r\n"))]
    return Document(header, tuple(part for part in parts if part.text.strip()))


def merge(fresh: Document, before: Document, known_tags: frozenset[str] = frozenset()) -> Document:
    """A card made again: fresh blocks at the places where the reader has put them, among the reader's own text.

    A README without blocks was written by hand: it keeps its text, and its header is brought up to date.

    Args:
        fresh ([`Document`]): what was made now.
        before ([`Document`]): what is there.
        known_tags (`frozenset[str]`): tags that are ours to take away.
    """
    header = _header(fresh.header, before.header, known_tags)
    if before.parts and not before.generated:
        return Document(header, before.parts)
    blocks = {part.name: part for part in fresh.parts if part.name}
    parts = [blocks.get(part.name) if part.name else part for part in before.parts]
    merged = [part for part in parts if part is not None]
    previous = None
    for name, part in blocks.items():
        here = [p.name for p in merged]
        if name not in here:
            merged.insert(here.index(previous) + 1 if previous in here and previous else 0, part)
        previous = name
    return Document(header, tuple(merged))


def over(local: str, remote: str, known_tags: frozenset[str] = frozenset()) -> str:
    """The card that takes the place of one on the Hub, where its reader may have written, too.

    A local card with text of the reader's own goes up as it is; any other one gets the text that is there.

    Args:
        local (`str`): what is uploaded.
        remote (`str`): what is there.
        known_tags (`frozenset[str]`): tags that are ours to take away.
    """
    card = parse(local)
    return local if card.own else str(merge(card, parse(remote), known_tags))


def _header(fresh: Mapping[str, Any], before: Mapping[str, Any], known_tags: frozenset[str]) -> dict[str, Any]:
    out = dict(fresh)
    for key in LISTS:
        there = before.get(key)
        if isinstance(there, str):
            there = [there]
        if isinstance(there, list):
            added = [item for item in there if item not in out.get(key, ()) and item not in known_tags]
            out |= {key: [*out.get(key, ()), *added]} if added else {}
    return out | {key: value for key, value in before.items() if key not in out and key != FIGURES}
