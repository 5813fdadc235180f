"""A run that was stopped on one machine goes on from the Hub on another, and ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_sae.errors import ConfigError
from hf_sae.models import AutoSAE
from hf_sae.training import SAETrainingArguments
from tests.local_hub import TOKEN, LocalHub
from tests.local_hub.client import Client
from tests.training.planted import planted, topk, trainer


RUN = """
import json, sys
from tests.training.planted import planted, topk, trainer
folder, batches, resume, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
x, _ = planted(2048)
fixed = {"total_tokens": 2048, "save_steps": 2, "push_to_hub": True, "hub_model_id": "tester/run"}
run = trainer(topk(), folder, x, **fixed | options)
run.stream = run.stream[:batches]
run.train(resume_from_checkpoint=resume)
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with LocalHub(lfs=True) as hub, Client(hub, tmp_path / "home") as running:
        yield running


def run(client: Client, folder: Path, batches: int, resume: object = None, **options: object) -> str:
    done = client.python(RUN, str(folder), str(batches), json.dumps(resume), json.dumps(options))
    assert (done.returncode != 0) == (batches < 8), done.stderr
    assert TOKEN not in done.stderr
    return done.stderr


def test_another_machine_goes_on_from_the_branch(client: Client, tmp_path: Path) -> None:
    x, _ = planted(2048)
    whole = topk()
    trainer(whole, tmp_path / "whole", x).train()
    assert "the data ended" in run(client, tmp_path / "first", 5)
    repo = client.hub.repos["models/tester/run"]
    assert set(client.hub.files("tester/run")) == {".gitattributes"}, "no half-trained model on main"
    branch = client.hub.files("tester/run", "checkpoints")
    assert {name.split("/")[0] for name in branch} == {".gitattributes", "last-checkpoint"}
    assert json.loads(branch["last-checkpoint/trainer_state.json"])["step"] == 4
    assert TOKEN.encode() not in b"".join(branch.values())
    run(client, tmp_path / "second", 8, "hub")
    found = AutoSAE.from_pretrained(tmp_path / "second")
    for (key, value), (_, expected) in zip(found.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(value, expected), key
    main = client.hub.files("tester/run")
    assert set(main) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert main["model.safetensors"] == (tmp_path / "second" / "model.safetensors").read_bytes()
    assert "Checkpoint 2" in repo.messages


def test_every_checkpoint_or_none(client: Client, tmp_path: Path) -> None:
    run(client, tmp_path / "all", 8, hub_strategy="all_checkpoints", hub_model_id="tester/all")
    kept = {name.split("/")[0] for name in client.hub.files("tester/all", "checkpoints")}
    assert kept == {".gitattributes", "checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"}
    run(client, tmp_path / "end", 8, hub_strategy="end", hub_model_id="tester/end")
    assert set(client.hub.repos["models/tester/end"].branches) == {"main"}
    missing = client.python(RUN, str(tmp_path / "x"), "8", '"hub"', json.dumps({"hub_model_id": "tester/end"}))
    assert "no branch 'checkpoints'" in missing.stderr


def test_training_survives_a_hub_that_does_not(client: Client, tmp_path: Path) -> None:
    client.hub.break_after("/commit/", 0)
    assert "could not push" in run(client, tmp_path / "run", 8)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_unknown_strategies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of checkpoint, all_checkpoints, end"):
        SAETrainingArguments(output_dir=str(tmp_path), hub_strategy="sometimes")
