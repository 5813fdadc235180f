"""What the tests start under torchrun: every scheme against one process over one fixed sequence of global batches.

`python -m tests.training.processes FOLDER` computes the expected figures and weights alone;
`torchrun … -m tests.training.processes FOLDER` compares each scheme with them. One launch serves many checks.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import load_file, save_file

from hf_sae.errors import CheckpointError, DataError, DistributedError
from hf_sae.models import AutoSAE
from hf_sae.training import SAETrainer, SAETrainingArguments
from hf_sae.training.parallel import Processes
from hf_sae.training.parallel.latents import SharedDictionary
from tests.training.cases import CASES, STEPS, TOKENS, batches, feed, schemes_of


HALF = 10
RESUMED = ("topk", "jumprelu", "several")
TOLERANCE = 1e-9


def share_of(batch: Any, rank: int, size: int) -> Any:
    """The rows of one process; the shares are unequal."""
    if isinstance(batch, dict):
        return {key: share_of(value, rank, size) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(share_of(value, rank, size) for value in batch)
    bounds = [0, *(len(batch) * (r + 1) // size - 3 for r in range(size - 1)), len(batch)]
    return batch[bounds[rank] : bounds[rank + 1]]


def run(
    folder: Path, case: str, scheme: str, resume: Path | None = None, **more: Any
) -> tuple[list[dict[str, float]], SAETrainer]:
    build, options = CASES[case]
    options = options | more
    state = Accelerator()
    args: dict[str, Any] = {"learning_rate": 3e-3, "disable_tqdm": True, "logging_steps": 1, "parallelism": scheme}
    args |= {"total_tokens": STEPS * TOKENS, "tokens_per_batch": TOKENS, "output_dir": str(folder)}
    data = [share_of(batch, state.process_index, state.num_processes) for batch in feed(case)]
    trainer = SAETrainer(build(), SAETrainingArguments(**args | options), data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.log_history, trainer


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a final model, as a loader gets them."""
    return {
        f"{path.parent.relative_to(folder)}/{key}": value
        for path in sorted(folder.rglob("model.safetensors"))
        if "checkpoint-" not in str(path)
        for key, value in AutoSAE.from_pretrained(path.parent, dtype=torch.double).state_dict().items()
    }


def expect(folder: Path, cases: Sequence[str] = tuple(CASES)) -> None:
    """One process: what is right."""
    for case in cases:
        history, _ = run(folder / "alone" / case, case, "data", save_steps=HALF)
        (folder / f"{case}.json").write_text(json.dumps(history))
        save_file(saved(folder / "alone" / case), folder / f"{case}.safetensors")


def compare(folder: Path, case: str, scheme: str) -> None:
    """Several processes: the same losses at every step, and the same saved weights."""
    place = folder / scheme / case
    history, _ = run(place, case, scheme, save_steps=HALF)
    expected = json.loads((folder / f"{case}.json").read_text())
    assert len(history) == len(expected) == STEPS
    if "dead_after_tokens" in CASES[case][1]:
        assert any(row["dead_fraction"] > 0.1 for row in expected), "nothing is dead: the case tests nothing"
    for got, want in zip(history, expected, strict=True):
        for key, value in want.items():
            assert abs(got[key] - value) <= TOLERANCE * max(1, abs(value)), (case, scheme, key, got[key], value)
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        assert_close(saved(place), load_file(folder / f"{case}.safetensors"), (case, scheme))
    PartialState().wait_for_everyone()
    if case in RESUMED:
        resumed(folder, place, case, scheme)


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], what: object) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == value.shape
        worst = float((found[key] - value).abs().max())
        assert worst <= TOLERANCE, (what, key, worst)


def resumed(folder: Path, place: Path, case: str, scheme: str) -> None:
    """From the checkpoint half-way: the same bits under the same scheme, the same numbers under another and of one process."""
    final = saved(place)
    halves = {scheme: place, "alone": folder / "alone" / case} | {s: folder / s / case for s in ("data", "latents")}
    for source, origin in halves.items():
        if not origin.exists():
            continue  # its turn has not come
        target = folder / "resumed" / f"{source}-{scheme}" / case
        run(target, case, scheme, resume=origin / f"checkpoint-{HALF}")
        PartialState().wait_for_everyone()
        if source == scheme:
            assert all(torch.equal(value, final[key]) for key, value in saved(target).items()), (case, scheme)
        assert_close(saved(target), final, (case, source, scheme))


def failures(folder: Path) -> None:
    """What goes wrong in one process is an error in all of them."""
    rank, last = PartialState().process_index, PartialState().num_processes - 1
    total = 10 * TOKENS * (last + 1)  # more than the shortest data, of however many processes
    args: dict[str, Any] = {"total_tokens": total, "tokens_per_batch": TOKENS, "disable_tqdm": True}
    data = batches(False)[: 3 if rank == last else 10]
    for source, text in (
        (data, f"the data ended in process {last} of {last + 1} after"),
        (broken(data) if rank == last else data, "gone wrong" if rank == last else f"process {last} could not read"),
        ([x * float("nan") if rank == last else x for x in data], "hold NaN"),
    ):
        trainer = SAETrainer(
            CASES["topk"][0](), SAETrainingArguments(output_dir=str(folder / "fails"), **args), source
        )
        found = error_of(trainer.train)
        assert text in found, (text, found)
    ties()
    full_disk(folder / "full", SAETrainingArguments(output_dir=str(folder / "full"), parallelism="latents", **args))


def ties() -> None:
    """Of equal values exactly k are chosen in all, those of the lowest latents."""
    processes = Processes(Accelerator())
    width, k = 3, 4
    dictionary = SharedDictionary(processes, [width] * processes.size)
    values = torch.ones(2, width)
    values[1] = torch.tensor([2.0, 1.0, 1.0]) if processes.rank == processes.size - 1 else 1.0
    found, indices = dictionary.choose(values, torch.tensor([[2, 0, 1]] * 2), k)
    chosen = [
        sorted((rank, latent) for rank, part in enumerate(parts) for latent in part)
        for parts in zip(
            *processes.objects([i[v > -torch.inf].tolist() for i, v in zip(indices, found, strict=True)]), strict=True
        )
    ]
    everything = [(rank, latent) for rank in range(processes.size) for latent in range(width)]
    assert chosen[0] == everything[:k], chosen
    winner = [(processes.size - 1, 2)]  # its value is the first of `indices`, which is latent 2
    assert chosen[1] == sorted(everything[: k - 1] + winner), chosen


def full_disk(folder: Path, args: SAETrainingArguments) -> None:
    """A file that one process cannot write, of each kind: no process believes in the checkpoint, the last one stays."""
    rank = PartialState().process_index
    trainer = SAETrainer(CASES["topk"][0](), args)
    trainer.training_step(batches(False)[0])
    trainer.save_checkpoint()
    before = sorted(path.name for path in folder.iterdir())
    for place, broken_rank in (
        ("checkpoint.save_file", 1),
        ("checkpoint.save_file", 0),
        ("parallel.rows._write_header", 0),
    ):
        trainer.training_step(batches(False)[1])
        full = mock.patch(f"hf_sae.training.{place}", side_effect=OSError(28, "No space left"))
        with full if rank == broken_rank else nullcontext():
            assert f"process {broken_rank}: " in error_of(trainer.save_checkpoint)
        trainer.processes.exchange(0)
        assert sorted(path.name for path in folder.iterdir()) == before
    trainer.processes.exchange(0)


def broken(data: list[Any]) -> Iterator[Any]:
    yield from data[:2]
    raise ValueError("gone wrong")


def error_of(function: Callable[[], Any]) -> str:
    try:
        function()
    except (DataError, DistributedError, CheckpointError, ValueError) as error:
        return str(error)
    return ""


def main(folder: Path, cases: Sequence[str]) -> None:
    if "RANK" not in os.environ:
        expect(folder)
        return
    state = Accelerator().state  # a PartialState made first would not read ACCELERATE_USE_CPU
    assert state.num_processes == int(os.environ["WORLD_SIZE"]), state.num_processes
    for case in cases or CASES:
        for scheme in schemes_of(case):
            compare(folder, case, scheme)
            if state.is_main_process:
                sys.stdout.write(f"SAME {state.num_processes} {scheme} {case}\n")
                sys.stdout.flush()
    if not cases:
        failures(folder)
    sys.stdout.write(f"END {state.process_index}\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except Exception:
        traceback.print_exc()  # torchrun shows no more than the exit status
        raise
