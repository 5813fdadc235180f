"""What a trainer writes to a checkpoint and reads from it, whatever the number of processes and their scheme."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError
from ..models import TrainingState
from . import checkpoint
from .trainee import Trainee


TENSORS = "tensors."  # before the names of an architecture's own

if TYPE_CHECKING:
    from .trainer import SAETrainer


def save(trainer: SAETrainer) -> Path:
    """Writes `checkpoint-<step>`; called by all processes, each of which writes what it owns.

    Raises:
        CheckpointError: if one of them cannot write; older checkpoints are then as they were.
    """
    processes, output_dir = trainer.processes, trainer.args.output_dir
    with checkpoint.new_folder(output_dir, trainer.step, processes) as (folder, said):
        said |= {"step": trainer.step, "tokens": trainer.tokens, "args": trainer.args.to_dict(), "saes": {}}
        said["log_history"] = trainer.log_history
        failure: Exception | None = None
        for trainee in trainer.trainees:  # in step with the others: one that cannot write goes on taking part
            try:
                trainer.scheme.save_model(trainee.name, trainee.sae, trainer.place(trainee, folder))
            except (OSError, CheckpointError) as error:
                failure = error
        if failure is not None:
            raise failure
        for trainee in trainer.trainees:
            if (own := _write_state(trainee, trainer.place(trainee, folder))) is not None:
                said["saes"][trainee.name] = own
        stream = {} if trainer.feed.stream is None else trainer.feed.stream.state_dict()
        name = checkpoint.shard_name(checkpoint.STREAM, processes.rank, processes.size)
        said["stream"] = checkpoint.write(folder / name, {**stream, "/torch_rng": torch.get_rng_state()})
    if processes.is_main:
        checkpoint.drop_old(output_dir, trainer.args.save_total_limit)
    return Path(output_dir) / f"checkpoint-{trainer.step}"


def _write_state(trainee: Trainee, place: Path) -> dict[str, Any] | None:
    """Optimiser and counters of what this process owns; returns what is JSON, `None` where another one writes."""
    number, count = trainee.scheme.shard()
    if count == 1 and not trainee.scheme.writes(trainee.name):
        return None
    state = dict(vars(trainee.state))
    own = {f"{TENSORS}{name}": value for name, value in state.pop("tensors").items()}
    del state["given"]  # of one pass
    tensors = checkpoint.optimizer_tensors(trainee.optimizer, trainee.parameter_names())
    path = place / checkpoint.shard_name(checkpoint.OPTIMIZER, number, count)
    return checkpoint.write(path, {**tensors, **own, **state}, trainee.scheme.latents(trainee.sae))


def resume(trainer: SAETrainer, folder: Path) -> None:
    """Takes over a checkpoint of any number of processes and any scheme; called by all processes.

    Raises:
        CheckpointError: for files that are missing or damaged, or of another run.
        DataError: if the stream cannot go on there.
    """
    state = checkpoint.read_json(folder)
    _require_same_run(trainer, folder, state)
    for trainee in trainer.trainees:
        if not trainer.scheme.trains(trainee.name):
            continue
        place = trainer.place(trainee, folder)
        trainer.scheme.load_model(trainee.sae, place)
        values = checkpoint.read_rows(place, trainee.sae.per_latent, *trainer.scheme.latents(trainee.sae))
        own = {key: values.pop(key) for key in list(values) if "/" not in key} | state["saes"][trainee.name]
        device = trainer.processes.device
        own["tensors"] = {k.removeprefix(TENSORS): own.pop(k).to(device) for k in list(own) if k.startswith(TENSORS)}
        own[checkpoint.FIRED] = own[checkpoint.FIRED].to(device)
        trainee.restore(TrainingState(**own))
        trainee.state.total_steps = trainer.args.total_steps
        checkpoint.restore_optimizer(trainee.optimizer, trainee.parameter_names(), values)
    trainer.step, trainer.tokens, trainer.log_history = state["step"], state["tokens"], state["log_history"]
    _restore_stream(trainer, folder, state["streams"])


def _require_same_run(trainer: SAETrainer, folder: Path, state: dict[str, Any]) -> None:
    names = [trainee.name for trainee in trainer.trainees]
    if set(state["saes"]) != set(names):
        raise CheckpointError(f"{str(folder)!r} holds {', '.join(state['saes'])}; this run trains {', '.join(names)}.")
    for key in ("tokens_per_batch", "seed", "gradient_accumulation_steps"):
        if state["args"][key] != getattr(trainer.args, key):
            raise CheckpointError(
                f"{str(folder)!r} was made with {key}={state['args'][key]}, this run has {getattr(trainer.args, key)}. "
                "Resume with the same value, or start a new run."
            )


def _restore_stream(trainer: SAETrainer, folder: Path, saved: list[dict[str, Any]]) -> None:
    processes, stream = trainer.processes, trainer.feed.stream
    trainer.feed.skipped = trainer.step
    names = [checkpoint.shard_name(checkpoint.STREAM, rank, len(saved)) for rank in range(len(saved))]
    if len(saved) != processes.size and stream is not None and not trainer.feed.divided:
        saved = saved[:1] * processes.size  # they read the same: one position is that of all
        names = names[:1] * processes.size
    if len(saved) == processes.size:
        state = checkpoint.read(folder / names[processes.rank], saved[processes.rank])
        torch.set_rng_state(state.pop("/torch_rng"))
        if stream is not None:
            stream.load_state_dict(state)
        return
    torch.manual_seed(trainer.args.seed + trainer.step)  # each process had a random state of its own
    if stream is not None:
        stream.load_states([checkpoint.read(folder / name, rest) for name, rest in zip(names, saved, strict=True)])
