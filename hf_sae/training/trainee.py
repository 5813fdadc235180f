"""One SAE in training: its optimiser, its state, one optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, HookPointError
from ..models import SAE, SparseCode, TrainingState
from .arguments import SAETrainingArguments
from .optimizer import RowAdam
from .parallel import Batch, DataParallel


@dataclass
class Trainee:
    """An SAE with what training needs beside it; under a scheme that shares latents out, the part of it that is here."""

    name: str
    sae: SAE
    optimizer: RowAdam
    state: TrainingState
    scheme: DataParallel
    fvu: float = math.nan
    loss: float = math.nan
    dead_share: float = 0.0  # of the latents, that have not fired for `dead_after_tokens`

    @classmethod
    def prepare(cls, name: str, sae: SAE, args: SAETrainingArguments, scheme: DataParallel) -> Trainee:
        """Lets the scheme put the SAE, or its part, where this process computes, and makes its optimiser.

        Raises:
            ConfigError: for a model whose weights nobody set, that has nothing to train, or numbers that would not be saved, or is a
                part left by another run.
        """
        _require_sound(sae)
        scheme.place(name, sae.train())
        device = scheme.processes.device
        fused = device.type in ("cpu", "cuda", "xpu")
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
        first, last = scheme.latents(sae)
        state.tokens_since_fired = torch.zeros(last - first, dtype=torch.long, device=device)
        return cls(name, sae, optimizer, state, scheme)

    def parameter_names(self) -> list[str]:
        """Names in the optimiser's order."""
        return [name for name, p in self.sae.named_parameters() if p.requires_grad]

    def select(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Input and target, `[tokens, d_in]` and `[tokens, d_out]`, from a batch.

        Raises:
            HookPointError: for a batch without the SAE's places, or of another width.
        """
        config = self.sae.config
        if isinstance(batch, dict):
            missing = [place for place in (*config.places_in, *config.places_out) if place not in batch]
            if missing:
                raise HookPointError(
                    f"{self.name} needs {missing[0]!r}, the batch has {', '.join(map(repr, batch))}. "
                    "Add the place to the stream's hook_points."
                )
            x = _side_by_side(batch, config.places_in)
            batch = (x, _side_by_side(batch, config.places_out)) if config.is_transcoder else x
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

    def given(self, batch: Batch) -> dict[str, Tensor]:
        """What the SAE `needs` of each token besides its activation, by name.

        Raises:
            HookPointError: for a batch without it.
        """
        found = {}
        for name in self.sae.needs:
            keys = [f"{place}/{name}" for place in self.sae.config.places_out]
            if not isinstance(batch, dict) or not batch.keys() >= set(keys):
                raise HookPointError(
                    f"{self.name} is a {type(self.sae).__name__} and needs the {name} of each token, {keys[0]!r} in a batch "
                    f"by hook point. Make the stream with hook_points={self.sae.batch_keys}."
                )
            found[name] = _side_by_side(batch, keys)
        return found

    def step(
        self, x: Tensor, target: Tensor, total: int, args: SAETrainingArguments, given: dict[str, Tensor] | None = None
    ) -> None:
        """One optimiser step, computed in `gradient_accumulation_steps` parts.

        Args:
            x (`Tensor`), target (`Tensor`): `[tokens, d_in]` and `[tokens, d_out]`, what this process computes on.
            total (`int`): tokens of the whole batch.
            args ([`SAETrainingArguments`]): of the run.
            given (`dict`, *optional*): of each token, what the SAE `needs`.

        Raises:
            DataError: if the loss is not finite; the weights are then as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate_at(self.state.step, self.sae.config.d_sae) * group["factor"]
        self.sae.before_step(self.state)
        fired = torch.zeros_like(self.state.tokens_since_fired)
        losses = torch.zeros(2, device=x.device)
        statistics: dict[str, Tensor] = {}
        size = math.ceil(x.shape[0] / args.gradient_accumulation_steps)
        for start in range(0, x.shape[0], size):
            part = slice(start, start + size)
            share = x[part].shape[0] / total
            self.state.given = {name: rows[part].to(x.device) for name, rows in (given or {}).items()}
            with torch.autocast(x.device.type, torch.bfloat16, enabled=args.computes_in_bf16(x.device)):
                output = self.sae(x[part], target=target[part], state=self.state)
            (output.loss * share).backward()
            fired += _firing_counts(output.latents)
            losses = losses + torch.stack([output.loss, output.fvu]).detach() * share
            _merge(statistics, output.statistics or {}, share)
        self.state.given = {}
        fired, losses = self.scheme.sum_losses(fired, losses)
        output.statistics = self.scheme.sum_statistics(statistics)
        self.loss, self.fvu = losses.tolist()
        self._require_finite(x, target)
        self.scheme.sum_gradients(self.optimizer)
        clip = None
        if args.max_grad_norm is not None:
            norm = self.scheme.gradient_norm(self.sae, self.optimizer)
            clip = (args.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)
        self.optimizer.update(clip)
        self.optimizer.zero_grad()
        self._count(fired, total)
        self.sae.after_step(self.state, output)

    def _require_finite(self, x: Tensor, target: Tensor) -> None:
        if math.isfinite(self.loss):
            return
        self.optimizer.zero_grad(set_to_none=True)
        sound = self.scheme.everywhere(bool(torch.isfinite(x).all() and torch.isfinite(target).all()))
        cause = (
            "Lower learning_rate."
            if sound
            else "The activations hold NaN or infinite values: look at the host's dtype."
        )
        raise DataError(f"{self.name}: the loss is {self.loss} at step {self.state.step}. {cause}")

    def _count(self, fired: Tensor, total: int) -> None:
        state = self.state
        state.tokens_since_fired += total
        state.tokens_since_fired[fired > 0] = 0
        n_fired, n_dead = self.scheme.sum_over_latents(fired.sum(), self._dead().sum())
        state.l0, self.dead_share = n_fired / total, n_dead / self.sae.config.d_sae
        state.tokens += total
        state.step += 1

    def _dead(self) -> Tensor:
        return self.state.tokens_since_fired > self.state.dead_after_tokens

    def restore(self, state: TrainingState) -> None:
        """Takes over the counters and numbers of a checkpoint; all processes of the scheme together."""
        self.state = state
        (n_dead,) = self.scheme.sum_over_latents(self._dead().sum())
        self.dead_share = n_dead / self.sae.config.d_sae


def _side_by_side(batch: dict[str, Tensor], places: list[str]) -> Tensor:
    return batch[places[0]] if len(places) == 1 else torch.cat([batch[place] for place in places], dim=-1)


def _merge(statistics: dict[str, Tensor], part: dict[str, Tensor], share: float) -> None:
    """Adds the statistics of a part of the batch to those of the others."""
    for name, value in part.items():
        if name.endswith("_max"):
            statistics[name] = torch.maximum(statistics[name], value) if name in statistics else value
        else:
            statistics[name] = statistics.get(name, 0) + value * share


def _firing_counts(latents: Tensor | SparseCode) -> Tensor:
    if isinstance(latents, SparseCode):
        return latents.detach().firing_counts()
    return (latents.detach() != 0).reshape(-1, latents.shape[-1]).sum(0)


def _require_sound(sae: SAE) -> None:
    """Refuses a part of a dictionary, and what is easily forgotten in an architecture of one's own and would come out later."""
    name = type(sae).__name__
    if not sae.dictionary.whole:
        raise ConfigError(
            f"this {name} holds a part of its {sae.config.d_sae} latents, as parallelism='latents' leaves it. Load the whole from "
            "the output_dir of that run."
        )
    if "all_tied_weights_keys" not in vars(sae):  # which post_init sets
        raise ConfigError(f"{name} has weights that nobody set: call self.post_init() at the end of its __init__.")
    if lost := [key for key, _ in sae.named_buffers() if key not in sae.state_dict()]:
        raise ConfigError(
            f"{name} has buffers that no checkpoint keeps, so that a loaded one would compute something else: "
            f"{', '.join(lost)}. Register them with persistent=True, or compute them where they are needed."
        )
