"""`SAETrainer`: one Accelerate loop for one SAE or many, on one pass over the host.

* A batch is a dict of activations by hook point; each SAE takes its `hook_in` and `hook_out` from it.
* How several processes share the work is a scheme of `parallel`; the loop is the same for all.
* A checkpoint holds weights, optimiser, counters and the stream's position: a resumed run ends with the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from ..errors import ConfigError, DataError
from ..hosts.towers import unwrap
from ..models import SAE
from ..models.adapters import has_adapter
from ..models.precision import bfloat16_pays
from . import checkpoint, remote, saving
from .arguments import SAETrainingArguments
from .feed import Feed, Share, Stream
from .health import Health
from .parallel import Batch, Processes, scheme_for
from .records import describe_run, history_of, write_log
from .signals import StopSignals
from .trainee import Trainee


logger = logging.getLogger(__name__)
SAMPLE_TOKENS = 16384  # activations that the loss normaliser, the decoder bias and the thresholds are estimated from


class SAETrainer:
    """Trains SAEs and transcoders.

    Args:
        model (`SAE`, `PeftModel` or `dict`): one, or many by name (layers, sites, seeds, sizes) in a single pass. Of
            an SAE with a PEFT adapter the adapter alone is trained and saved.
        args ([`SAETrainingArguments`]): the run.
        stream ([`ActivationStream`] or an iterable of batches, *optional*): batches are tensors `[tokens, d_in]`,
            pairs `(x, target)` or dicts by hook point, of whatever size they come. Of several processes each gives its
            share of every batch.

    Raises:
        ConfigError: for an SAE that cannot be trained, or not under `parallelism`.
        HookPointError: if the stream's places or widths do not fit the SAEs.
    """

    def __init__(
        self,
        model: nn.Module | dict[str, SAE] | dict[str, nn.Module],
        args: SAETrainingArguments,
        stream: Stream | Iterable[Batch] | None = None,
    ) -> None:
        self.args, self.health = args, Health()
        self._single = not isinstance(model, dict)
        models = dict(model) if isinstance(model, dict) else {"sae": model}
        saes = {name: sae if isinstance(sae, SAE) else _inside(sae, name) for name, sae in models.items()}
        for name in saes:
            if not re.fullmatch(r"[\w.=+-]+", name) or name.startswith("."):
                raise ConfigError(f"the SAE name {name!r} becomes a folder: use letters, digits and _ . = + - only.")
        trackers: Any = None if args.report_to in ("none", []) else args.report_to
        self.accelerator = Accelerator(log_with=trackers, project_dir=args.output_dir)
        self.processes = Processes(self.accelerator)
        self.scheme = scheme_for(args.parallelism, self.processes, saes)
        self.trainees = [Trainee.prepare(name, sae, args, self.scheme) for name, sae in saes.items()]
        self.feed = Feed(stream, args, self.processes)
        self.step, self.tokens = 0, 0
        self.log_history: list[dict[str, float]] = []
        self._initialized = False
        self._check_stream()
        if args.bf16 and not bfloat16_pays(self.accelerator.device.type):
            logger.warning(
                "bf16=True: this machine has no bfloat16 instructions, so that float32 is several times faster."
            )

    @property
    def stream(self) -> Stream | Iterable[Batch] | None:
        """Where the batches come from."""
        return self.feed.source

    @stream.setter
    def stream(self, source: Stream | Iterable[Batch] | None) -> None:
        self.feed.source = source

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> dict[str, float]:
        """Runs to `total_tokens`, saves the final model to `output_dir`, returns the last figures.

        Args:
            resume_from_checkpoint (`bool` or `str`, *optional*): a checkpoint folder, `True` for the newest one of
                `output_dir`, or `"hub"` for the newest one that was pushed to `hub_model_id`, by whatever machine.

        Raises:
            DataError: if the data ends early, or a loss is not finite.
            DistributedError: if another process of the run has ended.
            CheckpointError: if there is nothing to resume from, or a checkpoint cannot be written.
            KeyboardInterrupt: after Ctrl-C (`SystemExit(143)` after SIGTERM), once a checkpoint is saved.
        """
        if self.feed.source is None:
            raise DataError("train() needs stream=: an ActivationStream, or an iterable of batches.")
        remote.prepare(self.args, self.accelerator.is_main_process)
        if resume_from_checkpoint == "hub":
            with self.accelerator.main_process_first():
                resume_from_checkpoint = remote.fetch(self.args)
        if resume_from_checkpoint:
            saving.resume(self, checkpoint.to_resume(self.args.output_dir, resume_from_checkpoint))
            self._initialized = True
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
        with bar, contextlib.closing(self.feed), StopSignals() as signals:
            self._loop(bar, signals)
        self.save_model()
        self.scheme.finish({trainee.name: trainee.sae for trainee in self.trainees})
        for tracker in self.accelerator.trackers:
            tracker.finish()  # end_training() would also end the process group, which is the caller's
        if self.args.push_to_hub and self.accelerator.is_main_process:
            for trainee in self.trainees:
                name = None if self._single else trainee.name
                remote.write_card(self.place(trainee, Path(self.args.output_dir)), trainee.sae, self.args, name)
            remote.push(Path(self.args.output_dir), self.args)
        return self.figures()

    def _loop(self, bar: tqdm, signals: StopSignals) -> None:
        self.feed.open(self.tokens)
        while self.tokens < self.args.total_tokens:
            share = self.feed.next(self.tokens, signals.received or 0)
            before = self.tokens
            self.training_step(share)
            bar.update(self.tokens - before)
            if self.step % self.args.logging_steps == 0 or self.tokens >= self.args.total_tokens:
                self._log(bar)
            due = self.args.save_steps is not None and self.step % self.args.save_steps == 0
            if due or share.signal:
                folder = self.save_checkpoint()
                signals.stop(share.signal, f"saved {folder}; resume_from_checkpoint=True goes on from there.")

    def training_step(self, batch: Batch | Share) -> dict[str, float]:
        """One optimiser step of every SAE on one batch; returns [`figures`].

        Args:
            batch (`Tensor`, pair or dict): `[tokens, d_in]`, `(x, target)`, or activations by hook point; of several
                processes each gives its share.

        Raises:
            DataError: if a loss is not finite.
            HookPointError: if the batch does not have an SAE's places or widths.
        """
        share = batch if isinstance(batch, Share) else self.feed.share(batch)
        if not self._initialized:
            self._initialize(share)
        total = sum(share.counts)
        batch = self.scheme.batch(share.batch, share.counts)
        failure: DataError | None = None
        for trainee in self._own():
            x, target = (part.to(self.processes.device) for part in trainee.select(batch))
            try:
                trainee.step(x, target, total, self.args, trainee.given(batch))
            except DataError as error:
                failure = failure or error
        self._share_figures(failure)
        self.tokens += total
        self.step += 1
        return self.figures()

    def _own(self) -> list[Trainee]:
        return [trainee for trainee in self.trainees if self.scheme.trains(trainee.name)]

    def _share_figures(self, failure: DataError | None) -> None:
        """Every process knows the figures of all SAEs, and stops if the loss of one is not finite."""
        names = [trainee.name for trainee in self.trainees]
        own = torch.tensor([[t.loss, t.fvu, t.state.l0, t.dead_share] for t in self.trainees], dtype=torch.double)
        for trainee, row in zip(self.trainees, self.scheme.share_figures(names, own).tolist(), strict=True):
            trainee.loss, trainee.fvu, trainee.state.l0, trainee.dead_share = row
            if failure is None and not math.isfinite(trainee.loss):
                failure = DataError(f"{trainee.name}: the loss is {trainee.loss} in another process, which says why.")
        if failure is not None:
            raise failure

    def _initialize(self, share: Share) -> None:
        share = self.feed.sample(SAMPLE_TOKENS) or share
        batch = self.scheme.sample(share.batch, share.counts)
        for trainee in self._own():
            x, target = (part.to(self.processes.device) for part in trainee.select(batch))
            x, target = (part if part.dtype == torch.double else part.float() for part in (x, target))
            if not (torch.isfinite(x).all() and torch.isfinite(target).all()):
                raise DataError(
                    f"{trainee.name}: the activations hold NaN or infinite values. Look at the host's dtype."
                )
            torch.manual_seed(self.args.seed)
            sae, adapted = trainee.sae, has_adapter(trainee.sae)  # whose base is fitted
            fit = sae.measure if adapted or sae.fitted else sae.initialize_from
            fit(x, target, trainee.state)
            sae.feature_stats, sae.fitted = None, True  # statistics are those of other weights
            if not adapted:
                self._record_provenance(trainee)
        self._initialized = True

    def _record_provenance(self, trainee: Trainee) -> None:
        config, provenance = trainee.sae.config, dict(trainee.sae.config.provenance or {})
        if self.feed.stream is not None:
            provenance |= self.feed.stream.info()
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
            out[f"{prefix}dead_fraction"] = trainee.dead_share
        return out

    def _log(self, bar: tqdm) -> None:
        figures = self.figures()
        self.log_history.append(figures)
        self.accelerator.log({f"train/{k}": v for k, v in figures.items() if k != "step"}, step=self.step)
        n = len(self.trainees)
        mean = [
            sum(values) / n for values in zip(*((t.state.l0, t.fvu, t.dead_share) for t in self.trainees), strict=True)
        ]
        bar.set_postfix_str(f"L0 {mean[0]:.1f}, FVU {mean[1]:.3f}, dead {mean[2]:.1%}")
        for trainee in self.trainees:
            for line in self.health.advice(trainee, self.tokens / self.args.total_tokens):
                logger.warning(line)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Writes the SAE to `output_dir`, or each of many to a subfolder of its name; called by all processes."""
        for trainee in self.trainees:
            place = self.place(trainee, Path(output_dir or self.args.output_dir))
            self.scheme.save_model(trainee.name, trainee.sae, place)
            if self.scheme.writes(trainee.name):
                write_log(place, history_of(self.log_history, None if self._single else trainee.name))
        self.processes.exchange(0)  # nobody goes on before all have written

    def save_checkpoint(self) -> Path:
        """Writes `checkpoint-<step>` with all that a bit-exact resume needs; returns its folder. Called by all processes."""
        target = saving.save(self)
        if self.args.push_to_hub and self.processes.is_main:
            remote.push(target, self.args)
        return target

    def place(self, trainee: Trainee, folder: Path) -> Path:
        """Where an SAE's files are inside a folder of the run."""
        return folder if self._single else folder / trainee.name

    def _check_stream(self) -> None:
        if self.feed.stream is None:
            return
        for trainee in self.trainees:
            empty = {point: torch.zeros(1, width) for point, width in self.feed.stream.widths.items()}
            trainee.select(empty)
            trainee.given(empty)


def _inside(model: nn.Module, name: str) -> SAE:
    """The SAE that PEFT wraps, whose layers PEFT has replaced in place."""
    sae = unwrap(model)
    if not isinstance(sae, SAE):
        raise ConfigError(f"{name} is a {type(model).__name__}: give an SAE, or a PeftModel around one.")
    return sae


def _loggable(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
