"""The same TopK autoencoder in this library, in plain torch and in the peers' own classes.

Each implementation is built from a [`Task`], takes optimiser steps on `[tokens, d]` and exports [`Weights`]. Peers are
imported where they are built; an `ImportError` there means "not installed".
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .quality import Weights


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


class Implementation(Protocol):
    """One optimiser step at a time, and the weights at any moment."""

    def step(self, x: Tensor) -> None: ...

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

    def step(self, x: Tensor) -> None:
        self.trainer.training_step(x)

    def weights(self) -> Weights:
        sae = self.sae
        scale = sae.config.input_scale if sae.config.input_norm == "scalar" else 1.0
        return Weights(sae.encoder.weight, sae.encoder.bias / scale, sae.decoder.weight, sae.decoder.bias / scale)


class PlainTorch:
    """What one writes by hand: dense autograd and Adam; tied unit rows and the mean of the first batch to begin with."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(task.seed)
        self.k, self.started = task.k, False
        self.decoder = nn.Parameter(F.normalize(torch.randn(task.d_sae, task.d), dim=-1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(task.d_sae)), nn.Parameter(torch.zeros(task.d))
        parameters = [self.encoder, self.b_enc, self.decoder, self.b_dec]
        self.optimizer = torch.optim.Adam(parameters, lr=task.options.get("lr", 4e-3))

    def step(self, x: Tensor) -> None:
        if not self.started:
            self.b_dec.data, self.started = x.mean(0), True
        pre = torch.relu((x - self.b_dec) @ self.encoder.T + self.b_enc)
        values, indices = pre.topk(self.k, dim=-1)
        latents = torch.zeros_like(pre).scatter(-1, indices, values)
        loss = (x - latents @ self.decoder - self.b_dec).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.decoder.data = F.normalize(self.decoder.data, dim=-1)

    def weights(self) -> Weights:
        return Weights(self.encoder, self.b_enc, self.decoder, self.b_dec)


class SAELens:
    """`TopKTrainingSAE` under SAELens's own `SAETrainer.step`; options are `SAETrainerConfig` fields.

    `fused` exchanges the optimiser's loop over parameters for torch's fused kernel (not reachable by a setting there).
    """

    def __init__(self, task: Task) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(task.seed)
        options = dict(task.options)
        fused = options.pop("fused", False)
        norm = options.pop("normalize_activations", "none")
        self.sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(d_in=task.d, d_sae=task.d_sae, k=task.k, normalize_activations=norm)
        )
        total = task.steps * task.batch
        share, lr = options.pop("decay_share", 0), options.pop("lr", 3e-4)
        config = SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=task.batch,
            lr=lr,
            lr_end=lr / 10,  # what their runner's config fills in
            lr_decay_steps=int(share * task.steps),
            **options,
        )
        self.trainer = SAETrainer(config, self.sae, iter(()))
        if fused:
            for group in self.trainer.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
        self.norm, self.scaled = norm, False

    def step(self, x: Tensor) -> None:
        if self.norm == "expected_average_only_in" and not self.scaled:
            scale = x.shape[1] ** 0.5 / float(x.norm(dim=-1).mean())
            self.trainer.activation_scaler.scaling_factor, self.scaled = scale, True
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def weights(self) -> Weights:
        sae, scale = self.sae, self.trainer.activation_scaler.scaling_factor or 1.0
        norm = sae.W_dec.detach().norm(dim=-1)
        encoder, b_enc = sae.W_enc.detach().T * norm[:, None], sae.b_enc.detach() * norm / scale
        return Weights(encoder, b_enc, sae.W_dec.detach() / norm[:, None], sae.b_dec.detach() / scale)


class Sparsify:
    """`SparseCoder` with the loss, projection and optimisers of sparsify's trainer, whose loop lives in a forward hook.

    Options: `optimizer` ("signum", its default, or "adam"), `lr`, `auxk_alpha`, `warmup_steps`, `fused`.
    """

    def __init__(self, task: Task) -> None:
        if not torch.cuda.is_available():
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(task.seed)
        self.options, self.task, self.tokens = task.options, task, None
        self.sae = SparseCoder(task.d, SparseCoderConfig(num_latents=task.d_sae, k=task.k), dtype=torch.float32)
        self.since_fired = torch.zeros(task.d_sae, dtype=torch.long)
        self.started, self.scheduler = False, None
        self._make_optimizer(task)

    def _make_optimizer(self, task: Task) -> None:
        size = (task.d_sae / 2**14) ** 0.5
        if self.options.get("optimizer", "signum") == "signum":
            from schedulefree import ScheduleFreeWrapper
            from sparsify.sign_sgd import SignSGD

            groups = [{"params": self.sae.parameters(), "lr": self.options.get("lr", 5e-3 / size)}]
            self.optimizer = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
            self.optimizer.train()
            return
        from transformers import get_linear_schedule_with_warmup

        lr = self.options.get("lr", 2e-4 / size)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr, fused=self.options.get("fused"))
        warmup = self.options.get("warmup_steps", 1000)
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, warmup, task.steps)

    def step(self, x: Tensor) -> None:
        sae, alpha = self.sae, self.options.get("auxk_alpha", 0.0)
        if not self.started:
            sae.b_dec.data, self.started = x.mean(0), True
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, dead_mask=self.since_fired > 10_000_000 if alpha else None)
        (out.fvu + alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        self.since_fired += x.shape[0]
        self.since_fired[out.latent_indices.flatten()] = 0

    def weights(self) -> Weights:
        averaged = self.scheduler is None
        if averaged:
            self.optimizer.eval()
        sae = self.sae
        copies = (t.detach().clone() for t in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec))
        if averaged:
            self.optimizer.train()
        return Weights(*copies)


@dataclass
class Row:
    """A row of the table: an implementation, its settings, the distribution whose version is printed."""

    build: Callable[[Task], Implementation]
    note: str
    options: dict[str, Any] = field(default_factory=dict)
    distribution: str = "torch"

    def version(self) -> str:
        """`name version`, or "not installed"."""
        try:
            return f"{self.distribution} {version(self.distribution)}"
        except PackageNotFoundError:
            return "not installed"


ROWS: dict[str, Row] = {
    "hf_sae": Row(Ours, "defaults of train_sae", {"input_norm": "scalar"}),
    "saelens": Row(SAELens, "defaults: Adam 3e-4, constant", distribution="sae-lens"),
    "saelens-tuned": Row(
        SAELens, "Adam 3e-3, decay 30 %, fused", {"lr": 3e-3, "decay_share": 0.3, "fused": True}, "sae-lens"
    ),
    "sparsify": Row(Sparsify, "defaults: schedule-free SignSGD, no AuxK", distribution="eai-sparsify"),
    "sparsify-adam": Row(
        Sparsify,
        "its Adam at 4e-3, short warm-up, fused",
        {"optimizer": "adam", "lr": 4e-3, "warmup_steps": 6, "fused": True},
        "eai-sparsify",
    ),
    "torch": Row(PlainTorch, "dense autograd, Adam 4e-3"),
}
