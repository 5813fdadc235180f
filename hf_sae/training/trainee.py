"""One SAE in training: its optimiser, its state, one optimiser step."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import ConfigError, DataError, HookPointError
from ..models import SAE, SparseCode, TrainingState
from .arguments import SAETrainingArguments
from .optimizer import RowAdam


Batch = Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]


@dataclass
class Trainee:
    """An SAE with what training needs beside it; `wrapped` is the SAE or its DistributedDataParallel wrapper."""

    name: str
    sae: SAE
    wrapped: nn.Module
    optimizer: RowAdam
    state: TrainingState
    fvu: float = math.nan
    loss: float = math.nan

    @classmethod
    def prepare(cls, name: str, sae: SAE, args: SAETrainingArguments, accelerator: Accelerator) -> Trainee:
        """Moves the SAE to the process's device, wraps it where several processes train, makes its optimiser."""
        sae.train().to(accelerator.device)
        fused = accelerator.device.type in ("cpu", "cuda", "xpu")
        named = [(key, p) for key, p in sae.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError(
                f"{name} has no parameter that requires gradients. Load an adapter with is_trainable=True, or call "
                "sae.requires_grad_(True)."
            )
        groups = [{"params": [p], "factor": sae.learning_rate_factors.get(key, 1.0)} for key, p in named]
        betas = (args.adam_beta1, args.adam_beta2)
        sparse = [p for key, p in named if key in ("encoder.weight", "decoder.weight")]
        unit = [p for key, p in named if key == "decoder.weight" and sae.unit_norm_decoder]
        optimizer = RowAdam(
            groups, unit_rows=unit, factored=sparse, lr=1.0, betas=betas, eps=args.adam_epsilon, fused=fused
        )
        state = TrainingState(total_steps=args.total_steps, dead_after_tokens=args.dead_window)
        state.tokens_since_fired = torch.zeros(sae.config.d_sae, dtype=torch.long, device=accelerator.device)
        wrapped = accelerator.prepare_model(sae)
        return cls(name, sae, wrapped, optimizer, state)

    @property
    def points(self) -> tuple[str, str]:
        """The places that are read and written."""
        config = self.sae.config
        return str(config.hook_in), str(config.hook_in if config.hook_out is None else config.hook_out)

    def parameter_names(self) -> list[str]:
        """Names in the optimiser's order."""
        return [name for name, p in self.sae.named_parameters() if p.requires_grad]

    def dead_share(self) -> float:
        """Share of the latents that have not fired for `dead_after_tokens`."""
        return float((self.state.tokens_since_fired > self.state.dead_after_tokens).float().mean())

    def select(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Input and target, `[tokens, d_in]` and `[tokens, d_out]`, from a batch.

        Raises:
            HookPointError: for a batch without the SAE's places, or of another width.
        """
        config = self.sae.config
        if isinstance(batch, dict):
            missing = [p for p in self.points if p not in batch]
            if missing:
                raise HookPointError(
                    f"{self.name} needs {missing[0]!r}, the batch has {', '.join(map(repr, batch))}. "
                    "Add the place to the stream's hook_points."
                )
            batch = (batch[self.points[0]], batch[self.points[1]])
        if isinstance(batch, Tensor) and config.is_transcoder:
            raise HookPointError(f"{self.name} is a transcoder: give pairs (x, target) or a dict by hook point.")
        x, target = batch if isinstance(batch, tuple) else (batch, batch)
        for tensor, width, place in ((x, config.d_in, "d_in"), (target, config.d_out, "d_out")):
            if tensor.ndim != 2 or tensor.shape[1] != width or not tensor.shape[0]:
                raise HookPointError(
                    f"{self.name} has {place}={width}, the batch is {list(tensor.shape)}. "
                    f"Give [tokens, {width}] with at least one token, or a config of that width."
                )
        return x, target

    def step(self, x: Tensor, target: Tensor, args: SAETrainingArguments, accelerator: Accelerator) -> None:
        """One optimiser step on `[tokens, d]`, computed in `gradient_accumulation_steps` parts.

        Raises:
            DataError: if the loss is not finite; the weights are then as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate_at(self.state.step, self.sae.config.d_sae) * group["factor"]
        self.sae.before_step(self.state)
        fired = torch.zeros_like(self.state.tokens_since_fired)
        loss = fvu = torch.zeros((), device=x.device)
        size = math.ceil(x.shape[0] / args.gradient_accumulation_steps)
        for start in range(0, x.shape[0], size):
            part = slice(start, start + size)
            share = x[part].shape[0] / x.shape[0]
            waits = start + size < x.shape[0]
            with accelerator.no_sync(self.wrapped) if waits else contextlib.nullcontext():
                with torch.autocast(x.device.type, torch.bfloat16, enabled=args.computes_in_bf16(x.device)):
                    output = self.wrapped(x[part], target=target[part], state=self.state)
                (output.loss * share).backward()
            fired += _firing_counts(output.latents)
            loss = loss + output.loss.detach() * share
            fvu = fvu + output.losses["reconstruction"].detach() * share
        self.loss, self.fvu = float(loss), float(fvu)
        self._require_finite(x, target)
        clip = None
        if args.max_grad_norm is not None:
            clip = (args.max_grad_norm / (self.optimizer.norm() + 1e-6)).clamp_max(1.0)
        self.optimizer.update(clip)
        self.optimizer.zero_grad()
        self._count(fired, x.shape[0], accelerator)
        self.sae.after_step(self.state, output)

    def _require_finite(self, x: Tensor, target: Tensor) -> None:
        if math.isfinite(self.loss):
            return
        self.optimizer.zero_grad(set_to_none=True)
        sound = bool(torch.isfinite(x).all() and torch.isfinite(target).all())
        cause = (
            "Lower learning_rate."
            if sound
            else "The activations hold NaN or infinite values: look at the host's dtype."
        )
        raise DataError(f"{self.name}: the loss is {self.loss} at step {self.state.step}. {cause}")

    def _count(self, fired: Tensor, n_tokens: int, accelerator: Accelerator) -> None:
        # one collective: how often each latent fired, and on how many tokens, over all processes
        summed = accelerator.reduce(torch.cat([fired, fired.new_tensor([n_tokens])]), reduction="sum")
        fired, total = summed[:-1], int(summed[-1])
        state = self.state
        state.tokens_since_fired += total
        state.tokens_since_fired[fired > 0] = 0
        state.l0 = float(fired.sum()) / total
        state.tokens += total
        state.step += 1


def _firing_counts(latents: Tensor | SparseCode) -> Tensor:
    if isinstance(latents, SparseCode):
        return latents.detach().firing_counts()
    return (latents.detach() != 0).reshape(-1, latents.shape[-1]).sum(0)
