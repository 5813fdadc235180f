"""How long it takes to index and to search the features of a large autoencoder: synthetic latents, real code.

`python -m benchmarks.feature_search` writes a feature dataset into a temporary folder, indexes it and asks questions of
several kinds, each several times. It prints a Markdown page; `--json` prints the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from hf_sae.features.index import FeatureIndex
from hf_sae.features.manifest import SAESource
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.schema import EXAMPLES, EXPLANATIONS, FEATURES, Table
from hf_sae.features.search.filters import Filters
from hf_sae.features.writing import FeatureWriter
from hf_sae.models import TopKConfig, TopKSAE

from .report import processor


SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
WORDS, CONTEXTS, TOKENS, PROMOTED, BATCH, PLANTED = 30_000, 5, 64, 10, 2000, 1000
INDEX_LIMIT, QUERY_LIMIT = 30.0, 0.1  # seconds
D = 256


def vocabulary() -> np.ndarray:
    """Made-up words, `[WORDS]`."""
    n = len(SYLLABLES)
    return np.array(
        [SYLLABLES[i % n] + SYLLABLES[i // n % n] + SYLLABLES[(i * 7 + i // n**2) % n] for i in range(WORDS)]
    )


def write(folder: Path, n: int) -> None:
    """Writes a dataset of `n` latents: words by Zipf's law, five contexts of 64 tokens and one label each."""
    words, generator = vocabulary(), np.random.default_rng(0)
    with FeatureWriter(folder, {"layer_8": SAESource(d_sae=n, hook_in="resid_post.8")}) as writer:
        for start in tqdm(range(0, n, BATCH), desc="Writing", unit="batch", delay=2, leave=False):
            for table, rows in batch(np.arange(start, min(start + BATCH, n)), words, generator):
                writer.append(table, rows)


def batch(features: np.ndarray, words: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[str, pa.Table]]:
    """The rows of some latents, table by table."""
    n, m = len(features), len(features) * CONTEXTS
    promoted = drawn(generator, (n, PROMOTED))
    logits = -np.sort(-generator.random((n, PROMOTED)).astype(np.float32))
    density = 10 ** generator.uniform(-5, -1, n)
    tokens = [[" " + words[i] for i in row] for row in promoted]
    yield (
        "features",
        table_of(
            FEATURES,
            n,
            {
                "feature": features,
                "density": density,
                "n_fired": (density * 1e7).astype(int),
                "max_act": density * 100,
            },
            {
                "pos_tokens": tokens,
                "pos_token_ids": promoted,
                "pos_logits": logits,
                "text": ["".join(row) for row in tokens],
            },
        ),
    )
    ids = drawn(generator, (m, TOKENS))
    context = [[" " + words[i] for i in row] for row in ids]
    acts = generator.random((m, TOKENS)).astype(np.float32)
    yield (
        "examples",
        table_of(
            EXAMPLES,
            m,
            {"feature": features.repeat(CONTEXTS), "rank": np.tile(np.arange(CONTEXTS), n), "max_pos": acts.argmax(1)},
            {
                "kind": ["top"] * m,
                "tokens": context,
                "token_ids": ids,
                "acts": acts,
                "text": ["".join(c) for c in context],
            },
        ),
    )
    label = [" ".join(words[row]) for row in drawn(generator, (n, 8))]
    label = [f"{text} planted{i}" if i % PLANTED == 0 else text for text, i in zip(label, features, strict=True)]
    score = generator.uniform(0.5, 1, n).astype(np.float32)
    yield (
        "explanations",
        table_of(EXPLANATIONS, n, {"feature": features, "score": score}, {"text": label, "method": ["synthetic"] * n}),
    )


def drawn(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Numbers of words, the first ones often: rank `r` about as `1 / r`."""
    return np.minimum(np.exp(generator.random(shape) * np.log(WORDS)).astype(np.int32) - 1, WORDS - 1)


def table_of(table: Table, n: int, numbers: dict[str, Any], lists: dict[str, Any]) -> pa.Table:
    """Columns as an Arrow table; those that are not given are empty, zero or null."""
    given = numbers | {name: list(map(list, v)) if isinstance(v, np.ndarray) else v for name, v in lists.items()}
    columns = []
    for column in table.columns:
        if column.name in given:
            values = pa.array(given[column.name])
            columns.append(values.cast(column.type))
        elif column.optional:
            columns.append(pa.nulls(n, column.type))
        else:
            columns.append(pa.array([blank(column.name, column.type)] * n, column.type))
    return pa.Table.from_arrays(columns, schema=table.schema)


def blank(name: str, kind: pa.DataType) -> Any:
    """The value of a column that says nothing."""
    if name == "sae_id":
        return "layer_8"
    return [] if pa.types.is_list(kind) else "" if pa.types.is_string(kind) else 0


def queries(index: FeatureIndex, n: int, sae: TopKSAE) -> dict[str, Callable[[], Any]]:
    """Questions of every kind, by what they are called in the table."""
    words = vocabulary()
    rare, middle, common = words[20_000], words[500], words[0]
    filters = Filters(min_density=1e-4, max_density=1e-2, min_score=0.8)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(1))
    return {
        "one rare word": lambda: index.search(rare),
        "the word of one label": lambda: index.search(f"planted{n // 2 // PLANTED * PLANTED}"),
        "a misspelt label": lambda: index.search(f"{words[20_000]}x {words[9_000]}y"),
        "two words": lambda: index.search(f"{middle} {rare}"),
        "a phrase": lambda: index.search(f'"{middle} {words[3]}"'),
        "four words": lambda: index.search(" ".join(words[[400, 700, 3000, 12_000]])),
        "two words, filtered": lambda: index.search(f"{middle} {rare}", filters=filters),
        "the commonest word": lambda: index.search(common),
        "two common words and a rare one": lambda: index.search(f"{common} {words[1]} {rare}"),
        "by promoted token": lambda: index.by_promoted(" " + middle),
        "by direction": lambda: index.by_direction(direction, sae),
        "nothing to find": lambda: index.search("qqqqqq"),
    }


def measure(n: int, repeats: int) -> dict[str, Any]:
    """Writes, indexes, asks."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "dataset", n)
        dataset = FeatureDataset.open(Path(folder) / "dataset")
        start = time.perf_counter()
        index = FeatureIndex.build(dataset, Path(folder) / "cache")
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        FeatureIndex.open(dataset, Path(folder) / "cache").close()
        opening = time.perf_counter() - start
        sizes = {path.name: path.stat().st_size for path in sorted(index.store.folder.iterdir())}
        sae = TopKSAE(TopKConfig(d_in=D, d_sae=n, k=8))
        wanted = n // 2 // PLANTED * PLANTED
        found = index.search(f"planted{wanted}")[0].feature
        asked = {name: timed(ask, repeats) for name, ask in queries(index, n, sae).items()}
        index.close()
    return {
        "latents": n,
        "index_s": seconds,
        "open_s": opening,
        "sizes": sizes,
        "found": found == wanted,
        "queries": asked,
    }


def timed(ask: Callable[[], Any], repeats: int) -> dict[str, float]:
    """The first call, and median and slowest of the following ones, in seconds."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        ask()
        times.append(time.perf_counter() - start)
    return {"first": times[0], "median": statistics.median(times[1:]), "slowest": max(times[1:])}


def markdown(result: dict[str, Any], machine: str) -> str:
    """The page that is kept under `results`."""
    size = sum(result["sizes"].values()) / 2**20
    lines = [
        f"# Feature search: {result['latents']:,} synthetic latents",
        "",
        machine,
        f"{CONTEXTS} contexts of {TOKENS} tokens, {PROMOTED} promoted tokens and one label per latent;",
        f"{WORDS:,} made-up words by Zipf's law. Vectors: the hashing embedder, 256 numbers per label. 20 hits per query.",
        "",
        f"Index: {result['index_s']:.1f} s (aim {INDEX_LIMIT:.0f}: {verdict(result['index_s'], INDEX_LIMIT)}), {size:.0f} MiB.",
        f"The latent with the planted label comes first: {'yes' if result['found'] else 'no'}.",
        f"Opening it again: {result['open_s']:.2f} s, most of it for hashing the dataset's files.",
        "",
        "| query | first, ms | median, ms | slowest, ms | aim 100 ms (median) |",
        "|---|---:|---:|---:|---|",
    ]
    for name, times in result["queries"].items():
        cells = " | ".join(f"{1000 * times[key]:.1f}" for key in ("first", "median", "slowest"))
        lines.append(f"| {name} | {cells} | {verdict(times['median'], QUERY_LIMIT)} |")
    return "\n".join(lines) + "\n"


def verdict(seconds: float, limit: float) -> str:
    """Whether a limit was kept."""
    return "kept" if seconds < limit else "missed"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args.latents, args.repeats)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = (
        f"{processor()}, {cores} cores (shared with other work), {args.threads} threads, Python "
        f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, numpy {np.__version__}; load average {os.getloadavg()[0]:.1f} at the end."
    )
    sys.stdout.write(json.dumps(result) + "\n" if args.json else markdown(result, machine))


if __name__ == "__main__":
    main()
