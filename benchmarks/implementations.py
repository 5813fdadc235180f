"""The same TopK autoencoder in this library and in plain torch; `peers.py` has the other libraries' own classes.

Each implementation is built from a [`Task`], takes optimiser steps on `[tokens, d]`, encodes and exports [`Weights`].
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .quality import Weights


ADAM_BETAS = (0.9, 0.999)  # torch's


@dataclass
class Task:
    """What is trained: sizes, length, and settings that a row of the table changes."""

    d: int
    d_sae: int
    k: int
    batch: int
    steps: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate rises in the rows of one and the same mathematics."""
        return max(2, round(0.02 * self.steps))


class Implementation(Protocol):
    """One optimiser step at a time, the library's own encoding, and the weights at any moment."""

    @property
    def module(self) -> nn.Module: ...

    def step(self, x: Tensor) -> None: ...

    def encode(self, x: Tensor) -> object: ...

    def weights(self) -> Weights: ...


class Ours:
    """`SAETrainer.training_step` on a `TopKSAE`; options are `TopKConfig` and `SAETrainingArguments` fields."""

    def __init__(self, task: Task) -> None:
        from hf_sae.models import TopKConfig, TopKSAE
        from hf_sae.training import SAETrainer, SAETrainingArguments

        torch.manual_seed(task.seed)
        options = dict(task.options)
        shape = {name: options.pop(name) for name in list(options) if name in TopKConfig.__dataclass_fields__}
        self.sae = TopKSAE(TopKConfig(d_in=task.d, d_sae=task.d_sae, k=task.k, **shape))
        args = SAETrainingArguments(
            output_dir=tempfile.gettempdir(),
            total_tokens=task.steps * task.batch,
            tokens_per_batch=task.batch,
            disable_tqdm=True,
            **options,
        )
        self.trainer = SAETrainer(model=self.sae, args=args)
        self.module = self.sae

    def step(self, x: Tensor) -> None:
        self.trainer.training_step(x)

    def encode(self, x: Tensor) -> object:
        return self.sae.encode_sparse(x)

    def weights(self) -> Weights:
        sae = self.sae
        scale = sae.config.input_scale if sae.config.input_norm == "scalar" else 1.0
        return Weights(sae.encoder.weight, sae.encoder.bias / scale, sae.decoder.weight, sae.decoder.bias / scale)


class PlainTorch(nn.Module):
    """What one writes by hand: dense autograd and Adam; tied unit rows and the mean of the first batch to begin with.

    Options: `lr`, `betas`, `linear` (the rate rises over `task.warmup` steps and then falls to 0), `fused`, `bf16`.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        torch.manual_seed(task.seed)
        self.task, self.done = task, 0
        self.decoder = nn.Parameter(F.normalize(torch.randn(task.d_sae, task.d), dim=-1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(task.d_sae)), nn.Parameter(torch.zeros(task.d))
        self.optimizer = torch.optim.Adam(
            self.parameters(),
            lr=task.options.get("lr", 4e-3),
            betas=task.options.get("betas", ADAM_BETAS),
            fused=task.options.get("fused"),
        )
        falls = task.options.get("linear", False)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._share if falls else lambda step: 1.0)

    def _share(self, step: int) -> float:
        rise, fall = (step + 1) / self.task.warmup, (self.task.steps - step) / (self.task.steps - self.task.warmup)
        return max(0.0, min(1.0, rise, fall))

    @property
    def module(self) -> nn.Module:
        return self

    def encode(self, x: Tensor) -> Tensor:
        pre = torch.relu(F.linear(x - self.b_dec, self.encoder, self.b_enc))
        values, indices = pre.topk(self.task.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def step(self, x: Tensor) -> None:
        if not self.done:
            self.b_dec.data = x.mean(0)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.task.options.get("bf16", False)):
            reconstruction = self.encode(x) @ self.decoder + self.b_dec
        loss = (x - reconstruction).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.decoder.data = F.normalize(self.decoder.data, dim=-1)
        self.done += 1

    def weights(self) -> Weights:
        return Weights(self.encoder, self.b_enc, self.decoder, self.b_dec)
