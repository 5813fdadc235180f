"""Sums per document and the confidence intervals that come from resampling whole documents.

Tokens of one document resemble each other, so an interval that resamples tokens is far too narrow. Every metric is a function
of sums over tokens; keeping the sums per document makes a resample a weighted sum of a small table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


RESAMPLES = 1000
LEVEL = 0.95
_BLOCK_ELEMENTS = 1 << 24


class DocumentSums:
    """Adds per-token statistics up per document, batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, documents: Tensor, statistics: Mapping[str, Tensor]) -> None:
        """Add one batch.

        Args:
            documents (`Tensor`): `[tokens]`, the document of each token.
            statistics (`Mapping[str, Tensor]`): `[tokens]` values by name.
        """
        ids, inverse = documents.cpu().unique(return_inverse=True)
        for key, values in statistics.items():
            exact = values.detach().cpu().double()
            sums = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, inverse, exact)
            self._parts.setdefault(key, []).append((ids, sums))

    def table(self) -> dict[str, Tensor]:
        """`[documents]` sums by name, in fp64; the same documents, in ascending order, for every name."""
        every = [ids for parts in self._parts.values() for ids, _ in parts]
        documents = torch.cat(every).unique() if every else torch.zeros(0, dtype=torch.long)
        out = {}
        for key, parts in self._parts.items():
            total = torch.zeros(len(documents), dtype=torch.float64)
            for ids, sums in parts:
                total.index_add_(0, torch.searchsorted(documents, ids), sums)
            out[key] = total
        return out


def resample(table: Mapping[str, Tensor], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Tensor]:
    """Sums over documents drawn with replacement, as many as there are, `resamples` times.

    Args:
        table (`Mapping[str, Tensor]`): `[documents]` sums by name.
        seed (`int`): of a generator of its own; the global random state is neither read nor changed.
        resamples (`int`): number of draws.

    Returns:
        `dict[str, Tensor]`: `[resamples]` totals by name.
    """
    keys = list(table)
    columns = torch.stack([table[key] for key in keys], dim=-1)
    count = len(columns)
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    step = max(1, _BLOCK_ELEMENTS // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = torch.randint(count, (rows, count), generator=generator)
        weights = torch.zeros(rows, count, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(rows, count))
        blocks.append(weights @ columns)
    totals = torch.cat(blocks)
    return {key: totals[:, i] for i, key in enumerate(keys)}


def intervals(
    table: Mapping[str, Tensor],
    statistic: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float] | None]:
    """95 % percentile bootstrap intervals over documents of every value of `statistic`.

    Args:
        table (`Mapping[str, Tensor]`): `[documents]` sums by name.
        statistic (`Callable`): from totals to values, elementwise, such as [`hf_sae.metrics.summarise`].
        seed (`int`): of the resampling.
        resamples (`int`): number of resamples.

    Returns:
        `dict[str, tuple[float, float] | None]`: `None` with fewer than two documents, or where a resample gives no finite value.
    """
    documents = min((len(column) for column in table.values()), default=0)
    values = statistic(resample(table, seed, resamples)) if documents > 1 else dict.fromkeys(statistic(table))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    out: dict[str, tuple[float, float] | None] = {}
    for key, draws in values.items():
        if draws is None or not bool(draws.isfinite().all()):
            out[key] = None
            continue
        low, high = draws.quantile(tails).tolist()
        out[key] = (low, high)
    return out
