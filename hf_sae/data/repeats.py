"""Records without near-copies of earlier ones, in one pass and fixed memory.

Li et al. 2025 (FAST, arXiv 2506.07691) drop a conversation as soon as one of its 20-grams has been seen, which took their data from 11.4 to
4.8 million rows. What an n-gram is made of is not said there: here it is words, so that no tokenizer is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import DataError


_PROBES = 8  # bits per n-gram
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd, and otherwise of no meaning


class WithoutRepeats:
    """The records of a dataset that share no n-gram with any record kept or dropped before; a dataset itself, read as often as one likes.

    What was seen is a Bloom filter: a copy is never kept, and once in a while a fresh record is dropped. With 7 bytes for each n-gram of
    the whole data a fresh n-gram looks familiar once in 10 million times, with half of that 100 times as often; the default is 7 bytes
    for 38 million. The words of a conversation are those of its messages, without roles; a record shorter than n words is one n-gram.

    Args:
        records (`Iterable`): texts, or mappings with a column of texts or conversations; it can be read again.
        column (`str`, *optional*): otherwise the first of `text`, `messages`, `conversations`, `conversation`.
        n (`int`, *optional*, defaults to 20): words of an n-gram.
        n_bytes (`int`, *optional*, defaults to 256 MiB): memory of the filter.

    Raises:
        DataError: for numbers below 1; while reading, for a record without text.
    """

    def __init__(
        self, records: Iterable[Any], *, column: str | None = None, n: int = 20, n_bytes: int = 256 * 2**20
    ) -> None:
        if n < 1 or n_bytes < 1:
            raise DataError(f"n={n}, n_bytes={n_bytes}: both have to be at least 1.")
        self.records, self.column, self.n, self.n_bytes = records, column, n, n_bytes
        self.dropped = 0

    def __iter__(self) -> Iterator[Any]:
        seen, self.dropped = np.zeros(self.n_bytes, dtype=np.uint8), 0
        for record in self.records:
            bits = self._bits(self._words(record))
            byte, mask = bits >> np.uint64(3), np.uint8(1) << (bits & np.uint64(7)).astype(np.uint8)
            repeated = ((seen[byte] & mask) != 0).all(axis=0).any()
            np.bitwise_or.at(seen, byte, mask)
            if repeated:
                self.dropped += 1
            else:
                yield record

    def _words(self, record: Any) -> list[str]:
        value = record
        if isinstance(record, Mapping):
            names = (self.column,) if self.column else ("text", "messages", "conversations", "conversation")
            value = next((record[name] for name in names if record.get(name) is not None), None)
        if isinstance(value, (list, tuple)) and all(isinstance(turn, Mapping) for turn in value):
            value = " ".join(str(turn.get("content") or turn.get("value") or "") for turn in value)
        if not isinstance(value, str):
            columns = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise DataError(f"a record has no text or conversation ({columns}): name its column with column=.")
        return value.split()

    def _bits(self, words: list[str]) -> np.ndarray:
        """`[_PROBES, n-grams]`: the bits of each n-gram, from a polynomial of its words' hashes modulo 2**64."""
        digests = b"".join(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest() for word in words)
        hashes = np.frombuffer(digests, dtype=np.uint64) if words else np.zeros(1, dtype=np.uint64)
        n = min(self.n, len(hashes))
        grams = np.zeros(len(hashes) - n + 1, dtype=np.uint64)
        for offset in range(n):
            grams = grams * _BASE + hashes[offset : offset + len(grams)]
        # double hashing: two numbers from the halves of a mixed one give all probes
        mixed = (grams ^ (grams >> np.uint64(29))) * _MIX
        first, step = (
            mixed >> np.uint64(16),
            ((mixed ^ (mixed >> np.uint64(32))) * _BASE) >> np.uint64(16) | np.uint64(1),
        )
        return (first + np.arange(_PROBES, dtype=np.uint64)[:, None] * step) % np.uint64(8 * self.n_bytes)


__all__ = ["WithoutRepeats"]
