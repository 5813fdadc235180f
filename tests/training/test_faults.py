"""Two processes in which one dies, is stopped: all stop, say why, and go on to the same bits."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import torch

from hf_sae.training import checkpoint
from tests.forks import Fork, ranks
from tests.training.test_resume import final, wait_for_checkpoint


BOUND = 60  # seconds in which the others have to stop; they take about two


def launch(folder: Path, *options: str) -> list[Fork]:
    return ranks(2, "tests.training.streams", str(folder), *options, output=Path(f"{folder}.log"))


def finish(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    for process in launch(folder, *options):
        assert process.wait(240) == 0, process.output
    return final(folder)


def test_killed_then_stopped_then_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    expected = finish(tmp_path / "uninterrupted", "latents")

    first, second = launch(folder, "latents")
    wait_for_checkpoint(folder, first)
    time.sleep(random.Random().uniform(0, 1))
    second.kill()
    assert second.wait(10) == -signal.SIGKILL
    assert first.wait(BOUND) == 1
    message = first.output
    assert "DistributedError: process 0 of 2 stops: process 1 has ended." in message
    assert "resume_from_checkpoint=True" in message

    before = checkpoint.complete(folder)[-1].name
    running = launch(folder, "resume", "latents")
    while checkpoint.complete(folder)[-1].name == before:  # it has to be training to be stopped
        assert running[0].poll() is None, running[0].output
        time.sleep(0.02)
    running[1].send_signal(signal.SIGTERM)
    assert [process.wait(BOUND) for process in running] == [143, 143]
    assert "stopped by SIGTERM: saved" in running[0].output

    found = finish(folder, "resume", "latents")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert not list(folder.glob(".checkpoint-*")), "half a checkpoint is left"
