"""A few hundred optimiser steps on planted data, for the tests of architectures that claim to fit some better than others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_sae.models import SAE, SAEConfig, TrainingState, registered
from hf_sae.training.optimizer import RowAdam


Data = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def fitted(config: SAEConfig, data: Data, steps: int = 400, lr: float = 5e-3, seed: int = 0) -> tuple[SAE, float]:
    """The SAE of a config, trained on fresh batches of `data(n, generator)`, and its FVU at inference on held-out ones."""
    torch.manual_seed(seed)
    sae = registered()[config.model_type][1](config).train()
    generator = torch.Generator().manual_seed(seed + 1)
    state = TrainingState(total_steps=steps, dead_after_tokens=5_000)
    state.tokens_since_fired = torch.zeros(config.d_sae, dtype=torch.long)
    sae.initialize_from(*data(4096, generator), state)
    optimizer = RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight], lr=lr)
    for step in range(steps):
        x, target = data(256, generator)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 3 * (1 - step / steps))
        sae.before_step(state)
        output = sae(x, target=target, state=state)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.tokens_since_fired += 256
        state.tokens_since_fired[output.code.firing_counts() > 0] = 0
        state.step += 1
        sae.after_step(state, output)
    x, target = data(4096, torch.Generator().manual_seed(99))
    with torch.no_grad():
        error = (target - sae.eval()(x).reconstruction).square().sum()
    return sae, float(error / (target - target.mean(0)).square().sum())
