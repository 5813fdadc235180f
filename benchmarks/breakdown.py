"""Where the time of one of our steps goes, beside the floor that no TopK step on this machine can go below."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .floor import floor, milliseconds
from .implementations import Ours, Task


def breakdown(task: Task, x: Tensor) -> dict[str, float]:
    """Milliseconds by stage for one batch `x` `[tokens, d]`; "rest" is what the stages leave of the whole step."""
    ours = Ours(replace(task, steps=10_000))
    ours.step(x)
    trainee = ours.trainer.trainees[0]
    sae, state = trainee.sae, trainee.state
    bf16 = bool(task.options.get("bf16"))
    parts = floor(x, task.d_sae, task.k, torch.bfloat16 if bf16 else torch.float32)

    def forward() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return sae(x, state=state).loss

    def backward() -> None:
        forward().backward()
        trainee.optimizer.zero_grad()

    stages = {"encoder product": parts["product"], "top-k": parts["top_k"]}
    stages["rest of the forward pass"] = max(milliseconds(forward) - sum(stages.values()), 0.0)
    stages["backward"] = max(milliseconds(backward) - sum(stages.values()), 0.0)
    whole = milliseconds(lambda: ours.step(x))
    stages["rest: optimiser, projection, unit rows, counters"] = max(whole - sum(stages.values()), 0.0)
    stages["whole step"] = whole
    stages["floor: encoder product + top-k"] = sum(parts.values())
    return stages
