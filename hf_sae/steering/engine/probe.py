"""Whether a host can read a batch whose rows join and leave: found by trying, not by the name of its architecture."""

from __future__ import annotations

from typing import Any

import torch

from .batches import Batch, CachedBatch, PlainBatch
from .forward import HostForward, Output
from .prompts import Tokens
from .rows import Row


_TOLERANCE = (
    1e-3  # of the largest logit in float32; half precision rounds to 3 digits, and to more of them after some layers
)
_TOLERANCE_HALF = 0.05


def fitting_batch(forward: HostForward) -> type[Batch]:
    """[`CachedBatch`] if it gives the same logits as reading every row by itself, else [`PlainBatch`].

    State space models keep no keys and values per token, and hosts that number positions by columns are led astray by padding.
    """
    try:
        shared, alone = _scenario(forward, CachedBatch), _scenario(forward, PlainBatch)
    except Exception:  # whatever a host raises for a cache, mask or position that it does not know
        return PlainBatch
    half = next(forward.host.parameters()).dtype in (torch.bfloat16, torch.float16)
    allowed = (_TOLERANCE_HALF if half else _TOLERANCE) * alone.abs().max().clamp_min(1.0)
    return CachedBatch if bool(((shared - alone).abs() <= allowed).all()) else PlainBatch


def _scenario(forward: HostForward, kind: type[Batch]) -> torch.Tensor:
    """A long row, a short one that joins it two tokens later, and the short one alone when the long one has left."""
    rows = [_row(forward, 7, 0), _row(forward, 3, 1)]
    outputs: list[Output] = []

    def keep(output: Output, several: list[Row]) -> None:
        outputs.append(output)
        for place, row in enumerate(several):
            row.generated.append((11 * len(outputs) + 5 * place) % _vocabulary(forward))

    batch, output = kind.begin(forward, rows[:1])
    keep(output, rows[:1])
    keep(batch.step(), rows[:1])
    other, output = kind.begin(forward, rows[1:])
    keep(output, rows[1:])
    batch.absorb(other)
    keep(batch.step(), rows)
    keep(batch.step(), rows)
    outputs.append(batch.part([1]).step())
    return torch.cat([output.logits for output in outputs]).float()


def _row(forward: HostForward, n: int, seed: int) -> Row:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(_vocabulary(forward), (n,), generator=generator).tolist()
    return Row(Tokens(tuple(ids), (False,) * n))


def _vocabulary(forward: HostForward) -> int:
    config: Any = forward.host.config
    return int(config.get_text_config().vocab_size)
