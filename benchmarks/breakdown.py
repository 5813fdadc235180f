"""Where the time of one of our steps goes, beside the floor that no TopK step on this machine can go below."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .implementations import Ours, Task


def milliseconds(call: Callable[[], object], repeats: int = 15) -> float:
    """Fastest time of a call: whatever else runs on the machine only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def gemm_rate(size: int = 2048) -> float:
    """Floating-point operations per second of a square float32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / (milliseconds(lambda: a @ b, 7) / 1e3)


def breakdown(task: Task, x: Tensor) -> dict[str, float]:
    """Milliseconds by stage for one batch `x` `[tokens, d]`; "other" is what the stages leave of the whole step."""
    from hf_sae.models.sparse_ops import decode, top_k

    ours = Ours(task)
    ours.step(x)
    trainee = ours.trainer.trainees[0]
    sae, state, optimizer = trainee.sae, trainee.state, trainee.optimizer
    weight, bias = sae.encoder.weight.detach(), sae.encoder.bias.detach()
    pre = F.linear(x, weight, bias)
    indices = top_k(pre, task.k)
    values = pre.gather(-1, indices)
    stages = {
        "encoder product": milliseconds(lambda: F.linear(x, weight, bias)),
        "top-k": milliseconds(lambda: top_k(pre, task.k)),
        "decode": milliseconds(lambda: decode(values.relu(), indices, sae.decoder.weight.detach())),
    }
    forward = milliseconds(lambda: sae(x, state=state))
    stages["rest of the forward pass"] = forward - sum(stages.values())
    both = milliseconds(lambda: sae(x, state=state).loss.backward())
    stages["backward"] = both - forward
    stages["optimiser"] = milliseconds(optimizer.step)
    stages["other: projection, clipping, unit rows, counters"] = 0.0
    whole = milliseconds(lambda: ours.step(x))
    stages["other: projection, clipping, unit rows, counters"] = max(whole - sum(stages.values()), 0.0)
    stages["whole step"] = whole
    stages["floor"] = 2 * x.shape[0] * task.d_sae * task.d / gemm_rate() * 1e3
    return stages
