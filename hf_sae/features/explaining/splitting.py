"""Which contexts a label is made from, and which it is tested on: no document is on both sides.

* The side without a label to it holds contexts where the latent fires, and contexts where it is known not to fire: the `zero` ones,
  and *hard* ones, which have the very token on which it fires elsewhere.
* A hard one is the silent part of a context in which the latent fires further on. So that length gives nothing away, a
  context with the same peak token is cut to the same length around it, and the two are tested as a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .vocabulary import ABSENT
from .windows import Windows, hash_of, sorted_documents


BEFORE, AFTER = 6, 3  # tokens around the one in question, of a pair


@dataclass(frozen=True)
class HeldOut:
    """Contexts that a label is tested on.

    Args:
        firing ([`Windows`]): where the latent fires.
        silent ([`Windows`]): where it does not, the hard ones last.
        n_hard (`int`): how many of these have the token on which it fires elsewhere.
    """

    firing: Windows
    silent: Windows
    n_hard: int

    @property
    def documents(self) -> np.ndarray:
        """Where they are from."""
        return np.concatenate([self.firing.documents, self.silent.documents])


def split_by_document(windows: Windows, seed: int = 0) -> tuple[Windows, HeldOut]:
    """Contexts to make a label from, and those to test it on; about half of the firing ones each.

    Documents with silent contexts are held out first, because few contexts are silent; a label is made without them.

    Args:
        windows ([`Windows`]): all contexts of a latent.
        seed (`int`): of the order in which documents are dealt.
    """
    held = np.isin(windows.documents, _held_out(windows, seed))
    return windows.take(~held), _paired(windows.take(held), seed)


def _held_out(windows: Windows, seed: int) -> list[int]:
    """Documents of the test: at most half of the firing contexts, as far as whole documents allow, and not the strongest one."""
    firing, counts = np.unique(windows.documents[windows.fires], return_counts=True)
    of = dict(zip(firing.tolist(), counts.tolist(), strict=True))
    silent = set(windows.documents[~windows.fires].tolist())
    order = sorted(sorted_documents(windows.documents, seed), key=lambda document: document not in silent)
    wanted, held, taken = int(windows.fires.sum()) / 2, [], 0
    strongest = int(windows.documents[np.abs(windows.acts).max(1, initial=0).argmax()]) if of else None
    for document in order:
        if document == strongest:  # a label has to account for it
            continue
        more = of.get(document, 0)
        if taken + more <= wanted:
            held.append(document)
            taken += more
    return held


def _paired(held: Windows, seed: int) -> HeldOut:
    firing, silent = held.take(held.fires), held.take(~held.fires)
    pairs = _pairs(firing, seed)[: len(firing) // 2]
    if not pairs:
        return HeldOut(firing, silent, 0)
    rows = [row for row, _, _ in pairs]
    whole = firing.take([row for row in range(len(firing)) if row not in set(rows)])
    cut = _cut(firing.take(rows), firing.peaks[rows])
    hard = _cut(firing.take([source for _, source, _ in pairs]), np.array([place for _, _, place in pairs]))
    hard = replace(hard, fires=np.zeros(len(hard), dtype=bool))
    return HeldOut(joined(whole, cut), joined(silent, hard), len(hard))


def _pairs(firing: Windows, seed: int) -> list[tuple[int, int, int]]:
    """Context, other context, and a place in the other with the token of the first's peak and silence around it."""
    whole = _around(firing.counted, len_at_least=BEFORE + AFTER + 1)
    quiet = whole & ~_around(firing.acts != 0, len_at_least=1)
    free: dict[int, list[tuple[int, int]]] = {}
    for row, place in np.argwhere(quiet).tolist():
        free.setdefault(int(firing.numbers[row, place]), []).append((row, place))
    found, used = [], set()
    for row in sorted(range(len(firing)), key=lambda row: hash_of(row, seed)):
        peak = int(firing.peaks[row])
        if not whole[row, peak]:
            continue
        places = free.get(int(firing.numbers[row, peak]), ())
        match = next(((other, place) for other, place in places if other not in used), None)
        if match is not None:
            used.add(match[0])
            found.append((row, *match))
    return found


def _around(marked: np.ndarray, len_at_least: int) -> np.ndarray:
    """`[n, width]`: whether so many of the tokens around each are marked."""
    width = marked.shape[1]
    padded = np.pad(marked, ((0, 0), (BEFORE, AFTER)))
    counts = sum(padded[:, shift : shift + width].astype(np.int8) for shift in range(BEFORE + AFTER + 1))
    return np.asarray(counts) >= len_at_least


def _cut(windows: Windows, places: np.ndarray) -> Windows:
    """Only the tokens around one place of each."""
    at = np.arange(windows.numbers.shape[1])
    inside = (at >= places[:, None] - BEFORE) & (at <= places[:, None] + AFTER)
    return replace(
        windows,
        numbers=np.where(inside, windows.numbers, ABSENT),
        acts=np.where(inside, windows.acts, 0),
        special=windows.special & inside,
        peaks=places,
    )


def joined(one: Windows, other: Windows) -> Windows:
    """Contexts of two, which have the same width."""
    names = ("numbers", "acts", "special", "peaks", "fires", "documents")
    return Windows(one.vocabulary, *(np.concatenate([getattr(one, name), getattr(other, name)]) for name in names))
