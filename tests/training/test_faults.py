"""Two processes in which one dies, is stopped: all stop, say why, and go on to the same bits."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from hf_sae.training import checkpoint
from tests.training.test_resume import final, wait_for_checkpoint


ROOT = Path(__file__).parents[2]
BOUND = 60  # seconds in which the others have to stop; they take about two


def launch(folder: Path, *options: str) -> list[subprocess.Popen]:
    """Two processes as a launcher starts them, without a launcher that would end the second one itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.streams", str(folder), *options]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=open(log_path(folder, rank), "w"),
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def log_path(folder: Path, rank: int) -> str:
    return f"{folder}.{rank}.log"


def log_of(folder: Path, rank: int) -> str:
    return Path(log_path(folder, rank)).read_text()


def finish(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    running = launch(folder, *options)
    for rank, process in enumerate(running):
        assert process.wait(240) == 0, log_of(folder, rank)
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
    message = log_of(folder, 0)
    assert "DistributedError: process 0 of 2 stops: process 1 has ended." in message
    assert "resume_from_checkpoint=True" in message

    before = checkpoint.complete(folder)[-1].name
    running = launch(folder, "resume", "latents")
    while checkpoint.complete(folder)[-1].name == before:  # it has to be training to be stopped
        assert running[0].poll() is None, log_of(folder, 0)
        time.sleep(0.02)
    running[1].send_signal(signal.SIGTERM)
    assert [process.wait(BOUND) for process in running] == [143, 143]
    assert "stopped by SIGTERM: saved" in log_of(folder, 0)

    found = finish(folder, "resume", "latents")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert not list(folder.glob(".checkpoint-*")), "half a checkpoint is left"
