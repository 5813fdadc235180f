"""`SAETrainer`: one Accelerate loop for one SAE or many, on one pass over the host.

* A batch is a dict of activations by hook point; each SAE takes its `hook_in` and `hook_out` from it.
* The loss is computed in `sae.forward`, so that DDP synchronises its gradients.
* A checkpoint holds weights, optimiser, counters and the stream's position: a resumed run ends with the same bits.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from ..activations import BatchStream
from ..errors import CheckpointError, ConfigError, DataError
from ..hosts.towers import unwrap
from ..models import SAE, TrainingState
from ..models.adapters import has_adapter, load_adapter_tensors
from . import checkpoint, remote
from .arguments import SAETrainingArguments
from .health import Health
from .records import describe_run, history_of, write_log
from .signals import StopSignals
from .trainee import Batch, Trainee


logger = logging.getLogger(__name__)
SAMPLE_TOKENS = 16384  # activations that the loss normaliser, the decoder bias and the thresholds are estimated from


class SAETrainer:
    """Trains SAEs and transcoders.

    Args:
        model (`SAE`, `PeftModel` or `dict`): one, or many by name (layers, sites, seeds, sizes) in a single pass. Of
            an SAE with a PEFT adapter the adapter alone is trained and saved.
        args ([`SAETrainingArguments`]): the run.
        stream ([`BatchStream`] or an iterable of batches, *optional*): an `ActivationStream`, a `CachedStream`, …, or
            tensors `[tokens, d_in]`, pairs `(x, target)` or dicts by hook point, of whatever size they come.

    Raises:
        HookPointError: if the stream's places or widths do not fit the SAEs.
    """

    def __init__(
        self,
        model: nn.Module | dict[str, SAE] | dict[str, nn.Module],
        args: SAETrainingArguments,
        stream: BatchStream | Iterable[Batch] | None = None,
    ) -> None:
        self.args, self.stream, self.health = args, stream, Health()
        self._single = not isinstance(model, dict)
        models = dict(model) if isinstance(model, dict) else {"sae": model}
        saes = {name: sae if isinstance(sae, SAE) else _inside(sae, name) for name, sae in models.items()}
        for name in saes:
            if not re.fullmatch(r"[\w.=+-]+", name) or name.startswith("."):
                raise ConfigError(f"the SAE name {name!r} becomes a folder: use letters, digits and _ . = + - only.")
        trackers: Any = None if args.report_to in ("none", []) else args.report_to
        self.accelerator = Accelerator(log_with=trackers, project_dir=args.output_dir)
        self.trainees = [Trainee.prepare(name, sae, args, self.accelerator) for name, sae in saes.items()]
        self.step, self.tokens = 0, 0
        self.log_history: list[dict[str, float]] = []
        self._initialized, self._batches_to_skip = False, 0
        self._check_stream()

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> dict[str, float]:
        """Runs to `total_tokens`, saves the final model to `output_dir`, returns the last figures.

        Args:
            resume_from_checkpoint (`bool` or `str`, *optional*): a checkpoint folder, `True` for the newest one of
                `output_dir`, or `"hub"` for the newest one that was pushed to `hub_model_id`, by whatever machine.

        Raises:
            DataError: if the data ends early, or a loss is not finite.
            CheckpointError: if there is nothing to resume from, or a checkpoint cannot be written.
            KeyboardInterrupt: after Ctrl-C (`SystemExit(143)` after SIGTERM), once a checkpoint is saved.
        """
        if self.stream is None:
            raise DataError("train() needs stream=: an ActivationStream, or an iterable of batches.")
        remote.prepare(self.args, self.accelerator.is_main_process)
        if resume_from_checkpoint == "hub":
            with self.accelerator.main_process_first():
                resume_from_checkpoint = remote.fetch(self.args)
        if resume_from_checkpoint:
            self._resume(checkpoint.to_resume(self.args.output_dir, resume_from_checkpoint))
        if self.accelerator.log_with:
            self.accelerator.init_trackers(self.args.run_name, config=_loggable(self.args.to_dict()))
        quiet = self.args.disable_tqdm or not self.accelerator.is_main_process
        bar = tqdm(
            total=self.args.total_tokens,
            initial=self.tokens,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            disable=quiet,
        )
        with bar, StopSignals() as signals:
            self._loop(bar, signals)
        self.save_model()
        self.accelerator.end_training()
        if self.args.push_to_hub and self.accelerator.is_main_process:
            for trainee in self.trainees:
                name = None if self._single else trainee.name
                remote.write_card(self._place(trainee, Path(self.args.output_dir)), trainee.sae, self.args, name)
            remote.push(Path(self.args.output_dir), self.args)
        return self.figures()

    def _loop(self, bar: tqdm, signals: StopSignals) -> None:
        batches = self._batches()
        while self.tokens < self.args.total_tokens:
            batch = next(batches, None)
            if batch is None:
                raise DataError(
                    f"the data ended after {self.tokens:,} of {self.args.total_tokens:,} tokens. Give more text, pass "
                    "repeat=True to the stream, or lower total_tokens."
                )
            before = self.tokens
            self.training_step(batch)
            bar.update(self.tokens - before)
            if self.step % self.args.logging_steps == 0 or self.tokens >= self.args.total_tokens:
                self._log(bar)
            due = self.args.save_steps is not None and self.step % self.args.save_steps == 0
            if due or signals.received:
                folder = self.save_checkpoint()
                signals.stop_if_received(f"saved {folder}; resume_from_checkpoint=True goes on from there.")

    def _batches(self) -> Iterator[Batch]:
        if isinstance(self.stream, BatchStream):
            return self.stream.batches(self.args.tokens_per_batch // self.accelerator.num_processes)
        batches = iter(self.stream or ())
        for _ in range(self._batches_to_skip):  # a plain iterable has no position of its own to restore
            next(batches, None)
        return batches

    def training_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step of every SAE on one batch; returns [`figures`].

        Args:
            batch (`Tensor`, pair or dict): `[tokens, d_in]`, `(x, target)`, or activations by hook point.

        Raises:
            DataError: if a loss is not finite.
            HookPointError: if the batch does not have an SAE's places or widths.
        """
        if not self._initialized:
            self._initialize(batch)
        n_tokens = 0
        for trainee in self.trainees:
            x, target = (part.to(self.accelerator.device) for part in trainee.select(batch))
            trainee.step(x, target, self.args, self.accelerator)
            n_tokens = x.shape[0]
        self.tokens += n_tokens * self.accelerator.num_processes
        self.step += 1
        return self.figures()

    def _initialize(self, batch: Batch) -> None:
        if isinstance(self.stream, BatchStream):
            batch = self.stream.sample(SAMPLE_TOKENS)
        for trainee in self.trainees:
            x, target = (part.to(self.accelerator.device).float() for part in trainee.select(batch))
            if not (torch.isfinite(x).all() and torch.isfinite(target).all()):
                raise DataError(
                    f"{trainee.name}: the activations hold NaN or infinite values. Look at the host's dtype."
                )
            torch.manual_seed(self.args.seed)
            if has_adapter(trainee.sae):  # its base is fitted
                trainee.sae.measure(x, target, trainee.state)
                trainee.sae.feature_stats = None  # those of the base
            else:
                trainee.sae.initialize_from(x, target, trainee.state)
                self._record_provenance(trainee)
        self._initialized = True

    def _record_provenance(self, trainee: Trainee) -> None:
        config, provenance = trainee.sae.config, dict(trainee.sae.config.provenance or {})
        if isinstance(self.stream, BatchStream):
            provenance |= self.stream.info()
            config.base_model = config.base_model or provenance.get("base_model")
            config.base_revision = config.base_revision or provenance.get("base_revision")
        provenance["training"] = describe_run(self.args, config.d_sae, self.accelerator)
        config.provenance = provenance

    def figures(self) -> dict[str, float]:
        """Figures of the last step: `loss`, `fvu` (by the run's normaliser), `l0`, `dead_fraction`; by name for many SAEs."""
        out: dict[str, float] = {"step": self.step, "tokens": self.tokens}
        for trainee in self.trainees:
            prefix = "" if self._single else f"{trainee.name}/"
            values = {"loss": trainee.loss, "fvu": trainee.fvu, "l0": trainee.state.l0}
            out |= {prefix + key: value for key, value in values.items()}
            out[f"{prefix}dead_fraction"] = trainee.dead_share()
        return out

    def _log(self, bar: tqdm) -> None:
        figures = self.figures()
        self.log_history.append(figures)
        self.accelerator.log({f"train/{k}": v for k, v in figures.items() if k != "step"}, step=self.step)
        n = len(self.trainees)
        mean = [
            sum(values) / n
            for values in zip(*((t.state.l0, t.fvu, t.dead_share()) for t in self.trainees), strict=True)
        ]
        bar.set_postfix_str(f"L0 {mean[0]:.1f}, FVU {mean[1]:.3f}, dead {mean[2]:.1%}")
        for trainee in self.trainees:
            for line in self.health.advice(trainee, self.tokens / self.args.total_tokens):
                logger.warning(line)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Writes the SAE to `output_dir`, or each of many to a subfolder of its name."""
        if self.accelerator.is_main_process:
            for trainee in self.trainees:
                place = self._place(trainee, Path(output_dir or self.args.output_dir))
                trainee.sae.save_pretrained(place)
                write_log(place, history_of(self.log_history, None if self._single else trainee.name))

    def save_checkpoint(self) -> Path:
        """Writes `checkpoint-<step>` with all that a bit-exact resume needs; returns its folder."""
        target = Path(self.args.output_dir) / f"checkpoint-{self.step}"
        if not self.accelerator.is_main_process:
            return target
        state: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "args": self.args.to_dict(), "saes": {}}
        state["log_history"] = self.log_history
        with checkpoint.new_folder(self.args.output_dir, self.step) as folder:
            for trainee in self.trainees:
                place = self._place(trainee, folder)
                trainee.sae.save_pretrained(place)
                tensors = checkpoint.optimizer_tensors(trainee.optimizer, trainee.parameter_names())
                own = checkpoint.write(place / checkpoint.OPTIMIZER, {**tensors, **vars(trainee.state)})
                state["saes"][trainee.name] = own
            stream = self.stream.state_dict() if isinstance(self.stream, BatchStream) else {}
            rng = {"/torch_rng": torch.get_rng_state()}
            state["stream"] = checkpoint.write(folder / checkpoint.STREAM, {**stream, **rng})
            (folder / checkpoint.STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        checkpoint.drop_old(self.args.output_dir, self.args.save_total_limit)
        if self.args.push_to_hub:
            remote.push(target, self.args)
        return target

    def _resume(self, folder: Path) -> None:
        state = checkpoint.read_json(folder)
        names = [trainee.name for trainee in self.trainees]
        if set(state["saes"]) != set(names):
            raise CheckpointError(
                f"{str(folder)!r} holds {', '.join(state['saes'])}; this run trains {', '.join(names)}."
            )
        for key in ("tokens_per_batch", "seed", "gradient_accumulation_steps"):
            if state["args"][key] != getattr(self.args, key):
                raise CheckpointError(
                    f"{str(folder)!r} was made with {key}={state['args'][key]}, this run has {getattr(self.args, key)}. "
                    "Resume with the same value, or start a new run."
                )
        for trainee in self.trainees:
            place = self._place(trainee, folder)
            if has_adapter(trainee.sae):
                load_adapter_tensors(trainee.sae, place)
            else:
                loaded = type(trainee.sae).from_pretrained(place)
                trainee.sae.load_state_dict(loaded.state_dict())
                trainee.sae.config = loaded.config
            values = checkpoint.read(place / checkpoint.OPTIMIZER, state["saes"][trainee.name])
            own = {key: values.pop(key) for key in list(values) if "/" not in key}
            own["tokens_since_fired"] = own["tokens_since_fired"].to(self.accelerator.device)
            trainee.state = TrainingState(**own)
            trainee.state.total_steps = self.args.total_steps
            checkpoint.restore_optimizer(trainee.optimizer, trainee.parameter_names(), values)
        stream = checkpoint.read(folder / checkpoint.STREAM, state["stream"])
        torch.set_rng_state(stream.pop("/torch_rng"))
        self.step, self.tokens, self.log_history = state["step"], state["tokens"], state["log_history"]
        self._initialized, self._batches_to_skip = True, self.step
        if isinstance(self.stream, BatchStream):
            self.stream.load_state_dict(stream)

    def _place(self, trainee: Trainee, folder: Path) -> Path:
        return folder if self._single else folder / trainee.name

    def _check_stream(self) -> None:
        if not isinstance(self.stream, BatchStream):
            return
        for trainee in self.trainees:
            empty = {point: torch.zeros(1, width) for point, width in self.stream.widths.items()}
            trainee.select(empty)


def _inside(model: nn.Module, name: str) -> SAE:
    """The SAE that PEFT wraps, whose layers PEFT has replaced in place."""
    sae = unwrap(model)
    if not isinstance(sae, SAE):
        raise ConfigError(f"{name} is a {type(model).__name__}: give an SAE, or a PeftModel around one.")
    return sae


def _loggable(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
