"""From what was gathered of an autoencoder to the rows of `features` and `examples`, a few latents at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coactivation import FrequentPairs, PairTable
from .contexts import ABSENT, ContextStore
from .latent_state import ExampleCounts, LatentState
from .logit_effects import LOGIT_BINS, Effects, LogitEffects
from .neighbours import DecoderNeighbours
from .tokens import special_ids, token_texts


Row = dict[str, Any]


class TokenTexts:
    """Texts of tokens, each made once.

    Args:
        tokenizer: of the host.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.special = tokenizer, special_ids(tokenizer)
        self._known: dict[int, str] = {}

    def __call__(self, ids: list[int]) -> list[str]:
        """The text of each token, as in [`token_texts`]."""
        new = [index for index in dict.fromkeys(ids) if index not in self._known]
        self._known.update(zip(new, token_texts(self.tokenizer, new), strict=True))
        return [self._known[index] for index in ids]

    def plain(self, ids: list[int]) -> str:
        """All of them as running text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Gathered:
    """All that is known of the latents of one autoencoder.

    Args:
        sae_id (`str`): which.
        state ([`LatentState`]): what the text showed.
        neighbours ([`DecoderNeighbours`]), effects ([`LogitEffects`]): what the weights show.
    """

    sae_id: str
    state: LatentState
    neighbours: DecoderNeighbours
    effects: LogitEffects


@dataclass(frozen=True)
class Rows:
    """Makes rows of latents `[m]`.

    Args:
        texts ([`TokenTexts`]): of tokens.
        counts ([`ExampleCounts`]): contexts of each kind.
        n_logits (`int`): tokens on each side of the logits.
        n_related (`int`): neighbours, and partners.
        name_of (`Callable`): the name of a record of the dataset by its number, or `None`.
    """

    texts: TokenTexts
    counts: ExampleCounts
    n_logits: int
    n_related: int
    name_of: Callable[[int], str | None]

    def features(self, of: Gathered, latents: Tensor) -> list[Row]:
        """Rows of `features`."""
        near = [part.tolist() for part in of.neighbours.of(latents, self.n_related)]
        logits = of.effects.of(latents, self.n_logits)
        together = _partners(of.state.pairs, latents, self.n_related)
        rows = []
        for place, latent in enumerate(latents.tolist()):
            promoted = _logit_columns(logits, place, self.texts)
            rows.append(
                {
                    "sae_id": of.sae_id,
                    "feature": latent,
                    **_statistics(of.state, latent),
                    **promoted,
                    "nn_idx": near[0][place],
                    "nn_cos": near[1][place],
                    "coact_idx": [index for index, _ in together[place]],
                    "coact_count": [count for _, count in together[place]],
                    "text": " ".join(promoted["pos_tokens"]),
                }
            )
        return rows

    def examples(self, of: Gathered, latents: Tensor) -> list[Row]:
        """Rows of `examples`; a latent that never fired has none."""
        rows = []
        for latent in latents[of.state.fired[latents] > 0].tolist():
            kinds = (
                _top(of.state.top, latent),
                _random(of.state, latent, self.counts),
                _zero(of.state, latent, self.counts),
            )
            for facts, ids, acts, document in chain(*kinds):
                context = _context(ids, acts, document, self.texts, self.name_of)
                rows.append({"sae_id": of.sae_id, "feature": latent, **facts, **context})
        return rows


def _statistics(state: LatentState, latent: int) -> Row:
    fired, histogram = int(state.fired[latent]), state.histograms.row(latent)
    return {
        "density": fired / state.tokens,
        "n_fired": fired,
        "max_act": float(state.maxima[latent]),
        "mean_act": state.sums.mean(latent, fired),
        "hist_counts": histogram.counts.tolist(),
        "hist_edges": histogram.edges.tolist(),
    }


Context = tuple[Row, Tensor, Tensor, Tensor]


def _top(store: ContextStore, latent: int) -> Iterator[Context]:
    for rank in range(int((store.priorities[latent] > 0).sum())):
        yield {"kind": "top", "rank": rank}, *_stored(store, latent, rank)


def _random(state: LatentState, latent: int, counts: ExampleCounts) -> Iterator[Context]:
    """The first of the sample as they are, the others by intervals that hold parts of the contexts as equal as may be."""
    store = state.random
    there = int((store.priorities[latent] > 0).sum())
    for rank in range(min(there, counts.random)):
        yield {"kind": "random", "rank": rank}, *_stored(store, latent, rank)
    histogram = store.strengths.row(latent)
    bounds = quantile_bounds(histogram.counts, counts.bins)
    rest = np.arange(min(there, counts.random), there)
    bins = np.searchsorted(bounds, histogram.place(store.values[latent, rest].numpy()), side="right") - 1
    for number, (low, high) in enumerate(pairwise(bounds)):
        share = float(histogram.counts[low:high].sum() / histogram.counts.sum())
        ends = {"bin_min": float(histogram.edges[low]), "bin_max": float(histogram.edges[high]), "bin_share": share}
        for rank, place in enumerate(rest[bins == number][: counts.per_bin].tolist()):
            yield {"kind": "quantile", "bin": number, **ends, "rank": rank}, *_stored(store, latent, place)


def quantile_bounds(counts: np.ndarray, n: int) -> list[int]:
    """Where to cut a histogram into at most `n` intervals with shares as near to `1 / n` as its bins allow.

    Args:
        counts (`ndarray`): `[bins]`, not all of them 0.
        n (`int`): how many intervals.

    Returns:
        `list[int]`: indices of edges, ascending, with the first and the last; no interval is empty.
    """
    below = np.concatenate([[0], counts.cumsum()])
    cuts = [int(np.abs(below - below[-1] * i / n).argmin()) for i in range(1, n)]
    inner = sorted({cut for cut in cuts if 0 < below[cut] < below[-1]})
    return [0, *inner, len(counts)]


def _zero(state: LatentState, latent: int, counts: ExampleCounts) -> Iterator[Context]:
    pool = state.pool
    for rank, place in enumerate(pool.without(latent, counts.zero)):
        ids = pool.windows[place]
        yield {"kind": "zero", "rank": rank}, ids, torch.zeros(len(ids)), pool.documents[place]


def _stored(store: ContextStore, latent: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    return store.windows[latent, rank], store.activations[latent, rank], store.documents[latent, rank]


def _context(
    ids: Tensor, acts: Tensor, document: Tensor, texts: TokenTexts, name_of: Callable[[int], str | None]
) -> Row:
    inside = ids != ABSENT
    middle = len(ids) // 2  # the peak; windows are cut at the ends of a document
    listed, number = ids[inside].tolist(), int(document)
    return {
        "tokens": texts(listed),
        "token_ids": listed,
        "acts": acts[inside].tolist(),
        "max_pos": int(inside[:middle].sum()),
        "special_pos": [place for place, index in enumerate(listed) if index in texts.special],
        "doc_id": number,
        "doc_name": name_of(number),
        "text": texts.plain(listed),
    }


def _logit_columns(effects: Effects | None, place: int, texts: TokenTexts) -> Row:
    row: Row = {"logit_hist_counts": [], "logit_hist_edges": []}
    for side in ("pos", "neg"):
        row |= {f"{side}_tokens": [], f"{side}_token_ids": [], f"{side}_logits": []}
    if effects is None:
        return row
    low, high = effects.ends[place].tolist()
    for side, sign, (indices, values) in (("pos", 1, effects.promoted), ("neg", -1, effects.suppressed)):
        moved = values[place] * sign > 0
        ids = indices[place][moved].tolist()
        row |= {
            f"{side}_tokens": texts(ids),
            f"{side}_token_ids": ids,
            f"{side}_logits": values[place][moved].tolist(),
        }
    if low < high:
        row["logit_hist_counts"] = effects.counts[place].tolist()
        row["logit_hist_edges"] = np.linspace(low, high, LOGIT_BINS + 1).tolist()
    return row


def _partners(pairs: PairTable | FrequentPairs, latents: Tensor, n: int) -> list[list[tuple[int, int]]]:
    indices, counts = (part.tolist() for part in pairs.partners(latents, n))
    rows = (zip(i, c, strict=True) for i, c in zip(indices, counts, strict=True))
    return [[pair for pair in row if pair[1]] for row in rows]
