"""The contexts of one latent as arrays: which tokens, where it fires, and from which document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from .vocabulary import ABSENT, Vocabulary


if TYPE_CHECKING:
    from ..reading import FeatureDataset

COLUMNS = ("kind", "tokens", "token_ids", "acts", "max_pos", "special_pos", "doc_id")
ZERO = "zero"  # the kind of those where it does not fire


@dataclass(frozen=True)
class Windows:
    """Contexts `[n, width]`, padded on the right.

    Args:
        vocabulary ([`Vocabulary`]): what the numbers mean.
        numbers (`ndarray`): `[n, width]`, tokens; 0 is none.
        acts (`ndarray`): `[n, width]`, activation on each.
        special (`ndarray`): `[n, width]`, which are special tokens: they were not looked at, so they count neither way.
        peaks (`ndarray`): `[n]`, place of the strongest token.
        fires (`ndarray`): `[n]`, whether it fires in the context.
        documents (`ndarray`): `[n]`, number of the record.
    """

    vocabulary: Vocabulary
    numbers: np.ndarray
    acts: np.ndarray
    special: np.ndarray
    peaks: np.ndarray
    fires: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Any) -> Self:
        """Some of them."""
        values = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "vocabulary"}
        return type(self)(self.vocabulary, **values)

    @cached_property
    def counted(self) -> np.ndarray:
        """`[n, width]`: tokens of which it is known whether the latent fires."""
        return (self.numbers != ABSENT) & ~self.special

    @cached_property
    def line_starts(self) -> np.ndarray:
        """`[n, width]`: number of the first word of the line that a token stands in; 0 before it and where the window does not show it."""
        breaks, blank = self.vocabulary.breaks[self.numbers], self.vocabulary.blank[self.numbers]
        word, seen = np.zeros(len(self), dtype=np.int64), np.zeros(len(self), dtype=bool)
        starts = np.zeros_like(self.numbers)
        for place in range(self.numbers.shape[1]):
            starts[:, place] = word
            first = seen & (word == ABSENT) & ~blank[:, place]
            word = np.where(breaks[:, place], ABSENT, np.where(first, self.numbers[:, place], word))
            seen |= breaks[:, place]
        return starts

    def before(self, by: int) -> np.ndarray:
        """`[n, width]`: the token `by` places before each; after it, where `by` is negative."""
        if not by:
            return self.numbers
        out = np.zeros_like(self.numbers)
        if by > 0:
            out[:, by:] = self.numbers[:, :-by]
        else:
            out[:, :by] = self.numbers[:, -by:]
        return out

    def texts(self, row: int) -> list[str]:
        """The tokens of one."""
        return [self.vocabulary.texts[number] for number in self.numbers[row] if number != ABSENT]

    def text(self, row: int) -> str:
        """One as running text, without special tokens."""
        places = np.flatnonzero(self.counted[row])
        return "".join(self.vocabulary.texts[number] for number in self.numbers[row, places])

    @classmethod
    def of(cls, rows: pa.Table, vocabulary: Vocabulary) -> Self:
        """Rows of `examples`; equal contexts once, the first."""
        lengths = np.diff(_lists(rows, "token_ids").offsets.to_numpy())
        width = int(lengths.max(initial=1))
        place = np.arange(width) < lengths[:, None]
        numbers, acts = np.zeros((rows.num_rows, width), dtype=np.int32), np.zeros((rows.num_rows, width), np.float32)
        numbers[place] = vocabulary.numbers(_flat(rows, "token_ids"))
        acts[place] = _flat(rows, "acts")
        special = np.zeros((rows.num_rows, width), dtype=bool)
        sizes = np.diff(_lists(rows, "special_pos").offsets.to_numpy())
        special[np.arange(rows.num_rows).repeat(sizes), _flat(rows, "special_pos")] = True
        fires = np.array(rows.column("kind").to_pylist(), dtype=object) != ZERO
        peaks, documents = (rows.column(name).to_numpy() for name in ("max_pos", "doc_id"))
        _, first = np.unique(numbers, axis=0, return_index=True)
        return cls(vocabulary, numbers, acts, special, peaks, fires, documents).take(np.sort(first))


def vocabulary_of(dataset: FeatureDataset) -> Vocabulary:
    """The tokens of all contexts and of all that is promoted."""
    known: dict[int, str] = {}
    for table, columns in (("examples", [("token_ids", "tokens")]), ("features", [("pos_token_ids", "pos_tokens")])):
        for rows in dataset.columns(table, [name for pair in columns for name in pair]):
            for ids_name, texts_name in columns:
                ids, places = np.unique(_flat(rows, ids_name), return_index=True)
                new = [(i, p) for i, p in zip(ids.tolist(), places.tolist(), strict=True) if i not in known]
                texts = _lists(rows, texts_name).flatten().take(pa.array([p for _, p in new], pa.int64()))
                known.update(zip((i for i, _ in new), texts.to_pylist(), strict=True))
    return Vocabulary(np.fromiter(known, np.int64, len(known)), list(known.values()))


def latents_of(dataset: FeatureDataset) -> Iterator[tuple[str, int, pa.Table]]:
    """Autoencoder, latent and rows of `examples` of each latent that has any, in order."""
    waiting: list[pa.Table] = []
    key: tuple[str, int] | None = None
    for rows in dataset.columns("examples", COLUMNS):
        for found, part in _split(rows):
            if key is not None and found != key:
                yield *key, pa.concat_tables(waiting)
                waiting = []
            key = found
            waiting.append(part)
    if key is not None:
        yield *key, pa.concat_tables(waiting)


def _split(rows: pa.Table) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    names = rows.column("sae_id").combine_chunks().dictionary_encode()
    feature = rows.column("feature").to_numpy()
    place = names.indices.to_numpy()
    cuts = np.flatnonzero(np.diff(feature) | np.diff(place)) + 1
    for start, end in zip([0, *cuts], [*cuts, rows.num_rows], strict=True):
        if start < end:
            yield (names.dictionary[int(place[start])].as_py(), int(feature[start])), rows.slice(start, end - start)


def _lists(rows: pa.Table, name: str) -> Any:
    column = rows.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flat(rows: pa.Table, name: str) -> np.ndarray:
    return _lists(rows, name).flatten().to_numpy(zero_copy_only=False)


def sorted_documents(documents: np.ndarray, seed: int) -> list[int]:
    """Each document once, in an order that looks random and is always the same."""
    known: Sequence[int] = np.unique(documents).tolist()
    return sorted(known, key=lambda document: (hash_of(document, seed), document))


def hash_of(number: int, seed: int) -> int:
    """A 64-bit number that looks random, the same everywhere (the finaliser of SplitMix64)."""
    x = (number + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor % 2**64
    return x ^ x >> 31
