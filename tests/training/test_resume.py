"""Killed, interrupted and resumed runs of a real stream end with the same bits as an uninterrupted one."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from hf_sae.models import AutoSAE
from hf_sae.training import checkpoint
from tests.forks import Fork


def launch(folder: Path, resume: bool) -> Fork:
    return Fork("tests.training.streams", str(folder), *(["resume"] if resume else []), output=Path(f"{folder}.log"))


def wait_for_checkpoint(folder: Path, process: Fork) -> None:
    deadline = time.monotonic() + 120
    while not checkpoint.complete(folder):
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline
        time.sleep(0.02)


def final(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("a", "b")
        for key, value in AutoSAE.from_pretrained(folder, subfolder=name).state_dict().items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = launch(folder, resume=False)
    assert process.wait(240) == 0, process.output
    return final(folder)


def assert_same_bits(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    for key, value in final(folder).items():
        assert torch.equal(value, expected[key]), key


def test_killed_at_a_random_step(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    process = launch(tmp_path, resume=False)
    wait_for_checkpoint(tmp_path, process)
    time.sleep(random.Random().uniform(0, 1))
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "a" / "model.safetensors").exists(), "the run ended before it was killed"
    process = launch(tmp_path, resume=True)
    assert process.wait(240) == 0, process.output
    assert_same_bits(tmp_path, uninterrupted)
    assert not list(tmp_path.glob(".checkpoint-*")), "half a checkpoint is left"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor], number: signal.Signals, code: int
) -> None:
    process = launch(tmp_path, resume=False)
    wait_for_checkpoint(tmp_path, process)
    before = len(checkpoint.complete(tmp_path))
    process.send_signal(number)
    assert process.wait(120) in (code, -number)
    message = process.output
    assert "resume_from_checkpoint=True" in message
    assert len(checkpoint.complete(tmp_path)) >= before
    process = launch(tmp_path, resume=True)
    assert process.wait(240) == 0, process.output
    assert_same_bits(tmp_path, uninterrupted)
