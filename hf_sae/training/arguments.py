"""`SAETrainingArguments`: what a run needs to know, with transformers' names where the meaning is the same."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..models.precision import bfloat16_pays
from .parallel import SCHEMES


@dataclass(kw_only=True)
class SAETrainingArguments:
    """How to train one SAE or many.

    Args:
        output_dir (`str`): where checkpoints (`checkpoint-<step>/`) and the final model go.
        total_tokens (`int`): activations to train on.
        tokens_per_batch (`int`): activations per optimiser step.
        learning_rate (`float`, *optional*): peak rate of Adam; `None` is the rule of [`default_learning_rate`].
        adam_beta1, adam_beta2, adam_epsilon (`float`): of Adam. The epsilon is the one of Gao et al. 2024.
        warmup_share, decay_share (`float`): shares of the steps over which the rate rises from 0 and falls to 0.
        gradient_accumulation_steps (`int`): parts that a batch is computed in; the gradient is the same.
        parallelism (`str`): how several processes share the work; of one it means nothing. `"data"`: each computes on a
            share of the batch. `"latents"`: each owns a range of latents. `"saes"`: each owns some of many SAEs.
        max_grad_norm (`float`, *optional*): clip the global norm, which takes a second visit to every gradient; `None` does
            not: losses are shares of the variance, whose gradients are far below 1, and Adam bounds its steps.
        bf16 (`bool`, *optional*): compute encoder products in bfloat16 (weights and optimiser stay float32); `None` does so
            on a GPU that can, and not on a CPU.
        seed (`int`): of initialisation. The order of the data is seeded by the stream.
        dead_after_tokens (`int`, *optional*): a latent that did not fire for so long is dead; `None` is the smaller of
            10 M and a tenth of the run.
        logging_steps (`int`): steps between progress reports.
        save_steps (`int`, *optional*): steps between checkpoints; `None` saves the final model only.
        save_total_limit (`int`, *optional*): keep the newest so many checkpoints.
        report_to (`str` or `list`): trackers of Accelerate: `"none"`, `"trackio"`, `"tensorboard"`, `"wandb"`, …
        run_name (`str`): the project's name there.
        push_to_hub (`bool`), hub_model_id (`str`), hub_token (`str`), hub_private_repo (`bool`): upload checkpoints as they
            are made, to the branch `checkpoints`, and the final model to `main`.
        hub_strategy (`str`): which checkpoints go up: `"checkpoint"` the newest one, `"all_checkpoints"` every one, `"end"`
            none.
        disable_tqdm (`bool`): no progress bar.

    Raises:
        ConfigError: for values out of range.
    """

    output_dir: str
    total_tokens: int = 10_000_000
    tokens_per_batch: int = 4096
    learning_rate: float | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 6.25e-10
    warmup_share: float = 0.02
    decay_share: float = 0.3
    gradient_accumulation_steps: int = 1
    parallelism: str = "data"
    max_grad_norm: float | None = None
    bf16: bool | None = None
    seed: int = 0
    dead_after_tokens: int | None = None
    logging_steps: int = 20
    save_steps: int | None = None
    save_total_limit: int | None = None
    report_to: str | list[str] = "none"
    run_name: str = "hf-sae"
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = dataclasses.field(default=None, repr=False)
    hub_private_repo: bool | None = None
    hub_strategy: str = "checkpoint"
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        for name in ("total_tokens", "tokens_per_batch", "gradient_accumulation_steps", "logging_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "max_grad_norm", "save_steps", "save_total_limit", "dead_after_tokens"):
            value = getattr(self, name)
            self._require(name, value is None or (math.isfinite(value) and value > 0), "positive, or None")
        for name in ("warmup_share", "decay_share"):
            self._require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("adam_beta1", "adam_beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._require("parallelism", self.parallelism in SCHEMES, f"one of {', '.join(SCHEMES)}")
        strategies = ("checkpoint", "all_checkpoints", "end")
        self._require("hub_strategy", self.hub_strategy in strategies, f"one of {', '.join(strategies)}")
        self._require("hub_model_id", not self.push_to_hub or bool(self.hub_model_id), "given where push_to_hub=True")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"SAETrainingArguments: {name}={getattr(self, name)!r} must be {allowed}.")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return math.ceil(self.total_tokens / self.tokens_per_batch)

    @property
    def dead_window(self) -> int:
        """Tokens without firing after which a latent is dead."""
        return self.dead_after_tokens or min(10_000_000, max(self.total_tokens // 10, 1))

    def computes_in_bf16(self, device: torch.device) -> bool:
        """Whether encoder products are computed in bfloat16 on `device`."""
        if self.bf16 is not None:
            return self.bf16
        return device.type == "cuda" and bfloat16_pays("cuda")

    def peak_learning_rate(self, d_sae: int) -> float:
        """The rate between warm-up and decay."""
        return self.learning_rate or default_learning_rate(d_sae)

    def learning_rate_at(self, step: int, d_sae: int) -> float:
        """The rate of optimiser step `step` (from 0): linear warm-up, constant, linear decay."""
        peak = self.peak_learning_rate(d_sae)
        warmup, decay = self.warmup_share * self.total_steps, self.decay_share * self.total_steps
        rise = (step + 1) / warmup if warmup > 1 else 1.0
        fall = (self.total_steps - step) / decay if decay > 1 else 1.0
        return peak * max(0.0, min(1.0, rise, fall))

    def to_dict(self) -> dict[str, Any]:
        """Every field but the token."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "hub_token"}


def default_learning_rate(d_sae: int) -> float:
    """`3e-3 / sqrt(d_sae / 4096)`: the 1/sqrt(width) law of Gao et al. 2024.

    The constant was measured on inputs of unit variance (`input_norm="scalar"`) and runs of a few million tokens.
    """
    return 3e-3 / math.sqrt(d_sae / 4096)
