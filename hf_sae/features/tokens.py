"""The text of single tokens, spaces included."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how byte fallback of SentencePiece vocabularies writes a byte
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each token by itself; a token that is part of a character only is `⟨hex⟩`.

    Args:
        tokenizer: of the host.
        ids (`list` of `int`): token ids.
    """
    return [_text(tokenizer, int(index)) for index in ids]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of special tokens."""
    return frozenset(tokenizer.all_special_ids)


def _text(tokenizer: Any, index: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(index)
    text = tokenizer.decode([index], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if piece is None:
        return text
    if _BYTE.fullmatch(piece):
        return text if text and _UNDECODABLE not in text else f"⟨{piece[3:5].lower()}⟩"
    if _UNDECODABLE in text and all(c in _byte_alphabet() for c in piece):
        return "⟨" + " ".join(f"{_byte_alphabet()[c]:02x}" for c in piece) + "⟩"
    # SentencePiece decoders drop the space at the start of what they take for a sentence
    if piece.startswith("▁") and not text.startswith(" "):
        return " " * (len(piece) - len(piece.lstrip("▁"))) + text.lstrip(" ")
    return text


@cache
def _byte_alphabet() -> dict[str, int]:
    """From the printable character that stands for a byte in byte-level vocabularies to the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + place): b for place, b in enumerate(others)}
