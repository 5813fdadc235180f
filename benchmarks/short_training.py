"""Short runs of one autoencoder on rows in memory, and the figures of what came out."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_sae.metrics import reconstruction_statistics, summarise
from hf_sae.models import SAE, AutoSAE, SAEConfig
from hf_sae.training import SAETrainer, SAETrainingArguments


CLOSE = 0.05  # logarithm of an L0 over the wanted one


class Rows:
    """Rows in memory by place, as the trainer wants a stream; each pass over them in a new order.

    Args:
        rows (`dict`): `[tokens, d]` by place, or by `"<place>/<what an architecture needs besides>"`.
        seed (`int`): of the order.
    """

    def __init__(self, rows: Mapping[str, Tensor], seed: int) -> None:
        self.rows, self.generator = dict(rows), torch.Generator().manual_seed(seed)
        self.n_tokens = min(len(x) for x in self.rows.values())

    @property
    def widths(self) -> dict[str, int]:
        return {place: x.shape[1] for place, x in self.rows.items()}

    def sample(self, n_tokens: int) -> dict[str, Tensor]:
        return {place: x[:n_tokens].float() for place, x in self.rows.items()}

    def batches(self, tokens_per_batch: int) -> Iterator[dict[str, Tensor]]:
        while True:
            order = torch.randperm(self.n_tokens, generator=self.generator)
            for index in order[: len(order) // tokens_per_batch * tokens_per_batch].view(-1, tokens_per_batch):
                yield {place: x[index].float() for place, x in self.rows.items()}

    def info(self) -> dict[str, Any]:
        return {"data": {"source": "rows in memory"}}


@dataclass(frozen=True)
class Trained:
    """An autoencoder after its run, in `eval()` mode, and the seconds that its optimiser steps took."""

    sae: SAE
    seconds: float


def fit(
    config: SAEConfig,
    rows: Mapping[str, Tensor],
    *,
    steps: int,
    batch: int,
    seed: int,
    planned: int = 0,
    **options: Any,
) -> Trained:
    """Trains a new autoencoder.

    Args:
        config ([`SAEConfig`]): of it.
        rows (`dict`): `[tokens, d]` by place.
        steps (`int`), batch (`int`): optimiser steps, and tokens of each.
        seed (`int`): of the weights and of the order of the rows.
        planned (`int`): steps that the schedules are made for, where the run stops early.
        options: further fields of [`SAETrainingArguments`].
    """
    torch.manual_seed(seed)
    sae = AutoSAE.from_config(config)
    total = (planned or steps) * batch
    args = SAETrainingArguments(
        output_dir=tempfile.gettempdir(),
        total_tokens=total,
        tokens_per_batch=batch,
        seed=seed,
        disable_tqdm=True,
        **options,
    )
    stream: Any = Rows(rows, seed)
    trainer, batches = SAETrainer(model=sae, args=args, stream=stream), stream.batches(batch)
    seconds = 0.0
    with _without_advice():
        for _ in range(steps):
            tokens = next(batches)
            start = time.perf_counter()
            trainer.training_step(tokens)
            seconds += time.perf_counter() - start
    return Trained(sae.eval(), seconds)


@contextmanager
def _without_advice() -> Generator[None]:
    """What a run would say about dead latents is in the tables."""
    logger = logging.getLogger("hf_sae.training")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Figures:
    """On held-out tokens: share of the variance not explained, latents per token, share of latents that never fire, and γ.

    γ is `Σ‖x̂ - m‖² / Σ(x̂ - m)·(x - m)` with the mean m of the targets: below 1 the reconstruction is shrunk.
    """

    fvu: float
    l0: float
    dead: float
    gamma: float


@torch.no_grad()
def measure(sae: SAE, x: Tensor, target: Tensor | None = None, chunk: int = 2048) -> Figures:
    """[`Figures`] of `sae` on `x` `[tokens, d_in]` (and a transcoder's `target` `[tokens, d_out]`)."""
    target = x if target is None else target
    mean = target.double().mean(0)
    totals: dict[str, Tensor] = {}
    fired = torch.zeros(sae.config.d_sae, dtype=torch.long)
    for rows, wanted in zip(x.split(chunk), target.split(chunk), strict=True):
        output = sae(rows.float())
        centred = (output.reconstruction.double() - mean, wanted.double() - mean)
        for key, value in reconstruction_statistics(*centred, torch.zeros_like(mean)).items():
            totals[key] = totals.get(key, 0) + value.sum()
        fired += output.code.firing_counts()
    found = summarise(totals)
    return Figures(
        fvu=float(found["fvu"]),
        l0=float(fired.sum()) / len(x),
        dead=float((fired == 0).float().mean()),
        gamma=float(found["relative_bias"]),
    )


def calibrated(
    l0_at: Callable[[float], float],
    target: float,
    many: float,
    few: float,
    rounds: int = 6,
    known: dict[float, float] | None = None,
) -> float:
    """The coefficient between `many` and `few` whose L0 is nearest to `target`, by bisection of its logarithm.

    Args:
        l0_at (`Callable`): L0 of a short run with a coefficient, which goes one way from `many` to `few`.
        target (`float`): the L0 that is wanted.
        many (`float`), few (`float`): coefficients that give too many and too few latents; either may be the larger.
        rounds (`int`): runs at most.
        known (`dict`, *optional*): L0 by coefficient of runs that were made already; new ones are added.
    """
    known = {} if known is None else known

    def miss(coefficient: float) -> float:
        return abs(math.log(max(known[coefficient], 1e-3) / target))

    for _ in range(rounds):
        if any(miss(coefficient) < CLOSE for coefficient in known):
            break
        above = min((c for c, l0 in known.items() if l0 > target), key=miss, default=many)
        below = min((c for c, l0 in known.items() if l0 <= target), key=miss, default=few)
        middle = math.sqrt(above * below)
        known[middle] = l0_at(middle)
    return min(known, key=miss)
