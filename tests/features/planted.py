"""Feature datasets of latents whose rule is known: random text, and a function that says where each latent fires."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sae.features.manifest import SAESource
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.writing import FeatureWriter


WORDS = [
    " import",
    " os",
    " sys",
    "self",
    ".",
    " path",
    " =",
    " None",
    ",",
    "(",
    ")",
    "\n    ",
    "\n        ",
    " 1",
    "27",
    " name",
]
WORDS += [" running", " walking", " def", " class", ":", '"', " a", " b", " c", " return", " if", " for", " in", " x"]
HALF = 12  # tokens on each side of a peak, as a harvest keeps them
Fires = Callable[[Sequence[str], int], float]


def documents(n: int = 60, length: int = 120, seed: int = 0, words: Sequence[str] = WORDS) -> list[list[str]]:
    """Random tokens, so that nothing but the planted rule tells where a latent fires."""
    rng = random.Random(seed)
    return [[rng.choice(words) for _ in range(length)] for _ in range(n)]


def at_random(share: float, seed: int = 0) -> Fires:
    """A latent that fires on random tokens."""
    rng = random.Random(seed)
    return lambda tokens, place: float(rng.random() < share)


def plant(
    folder: Path,
    latents: Mapping[int, Fires],
    texts: Sequence[Sequence[str]] | None = None,
    promoted: Mapping[int, Sequence[str]] | None = None,
    kept: int = 40,
) -> Path:
    """Writes what a harvest would write of them.

    Args:
        folder: where to.
        latents: activation on a place of a document, by the number of the latent.
        texts: tokens of each document.
        promoted: tokens that a latent promotes.
        kept: contexts of each kind.
    """
    texts = documents() if texts is None else texts
    ids = {token: number for number, token in enumerate(dict.fromkeys(token for text in texts for token in text))}
    features, examples = [], []
    for latent, fires in sorted(latents.items()):
        acts = [[fires(text, place) for place in range(len(text))] for text in texts]
        n_fired, total = sum(a != 0 for row in acts for a in row), sum(map(len, texts))
        features.append(_facts(latent, n_fired, total, max((max(row) for row in acts), default=0), promoted, ids))
        if n_fired:
            examples += _examples(latent, texts, acts, ids, kept)
    with FeatureWriter(folder, {"sae": SAESource(d_sae=max(latents) + 2)}, data={"name": "planted"}) as writer:
        writer.append("features", features)
        writer.append("examples", examples)
    return folder


def _facts(latent: int, n_fired: int, total: int, most: float, promoted: Any, ids: dict[str, int]) -> dict[str, Any]:
    up = list((promoted or {}).get(latent, ()))
    row: dict[str, Any] = {"sae_id": "sae", "feature": latent, "density": n_fired / total, "n_fired": n_fired}
    row |= {"max_act": float(most), "mean_act": float(most) / 2, "pos_tokens": up, "text": " ".join(up)}
    row |= {"pos_token_ids": [ids[token] for token in up], "pos_logits": [1.0] * len(up)}
    empty = ("hist_counts", "hist_edges", "neg_tokens", "neg_token_ids", "neg_logits", "logit_hist_counts")
    empty += ("logit_hist_edges", "nn_idx", "nn_cos", "coact_idx", "coact_count")
    return row | {name: [] for name in empty}


def _examples(latent: int, texts: Any, acts: Any, ids: dict[str, int], kept: int) -> list[dict[str, Any]]:
    rng = random.Random(latent)
    quiet = [[not any(row[max(0, at - HALF) : at + HALF + 1]) for at in range(len(row))] for row in acts]
    every = [(number, place) for number, text in enumerate(texts) for place in range(len(text))]
    firing = [(number, place) for number, place in every if acts[number][place]]
    silent = [(number, place) for number, place in every if quiet[number][place]]
    rng.shuffle(firing)
    rng.shuffle(silent)
    firing.sort(key=lambda at: -acts[at[0]][at[1]])
    rows = []
    for kind, places in (("top", firing), ("zero", silent)):
        for rank, (number, place) in enumerate(places[:kept]):
            start, end = max(0, place - HALF), min(len(texts[number]), place + HALF + 1)
            tokens = list(texts[number][start:end])
            row: dict[str, Any] = {"sae_id": "sae", "feature": latent, "kind": kind, "rank": rank, "tokens": tokens}
            row |= {"acts": acts[number][start:end], "max_pos": place - start, "special_pos": [], "doc_id": number}
            rows.append(row | {"token_ids": [ids[token] for token in tokens], "text": "".join(tokens)})
    return rows


def opened(folder: Path) -> FeatureDataset:
    """The dataset of a folder."""
    return FeatureDataset.open(folder)
