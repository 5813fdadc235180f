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
if not options.pop("patient", True):
    import time
    time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between attempts
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
    assert set(main) == {".gitattributes", "README.md", "config.json", "model.safetensors", "training_log.json"}
    assert "library_name: hf-sae" in main["README.md"].decode()
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


def test_an_upload_that_breaks_off_does_not_end_the_run(client: Client, tmp_path: Path) -> None:
    client.hub.break_after("^PUT /objects/", 0, hang_up=True)
    said = run(client, tmp_path / "run", 8, patient=False)
    assert "broke off" in said
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert set(client.hub.files("tester/run")) == {".gitattributes"}
    client.hub.broken = None
    run(client, tmp_path / "again", 8)
    assert "model.safetensors" in client.hub.files("tester/run")


def test_a_wrong_token_or_name_is_said_before_anything_is_trained(client: Client, tmp_path: Path) -> None:
    for options, expected in (
        ({"hub_token": "hf_wrong"}, "hf auth login"),
        ({"hub_model_id": "somebody/run"}, "may not write there"),
        ({"hub_model_id": "tester/run/x"}, "did you mean 'tester/run'"),
    ):
        done = client.python(RUN, str(tmp_path / "run"), "8", "null", json.dumps(options))
        assert done.returncode != 0
        assert expected in done.stderr.strip().splitlines()[-1]
        assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_checkpoints_of_a_hostile_or_another_run_are_refused(client: Client, tmp_path: Path) -> None:
    run(client, tmp_path / "run", 8)
    repo = client.hub.repos["models/tester/run"]
    branch = client.hub.files("tester/run", "checkpoints")
    state = json.loads(branch["last-checkpoint/trainer_state.json"])

    def resumed(folder: str, **files: bytes) -> str:
        repo.commit("checkpoints", {**branch, **files})
        done = client.python(RUN, str(tmp_path / folder), "8", '"hub"', "{}")
        return done.stderr.strip().splitlines()[-1]

    changed = json.dumps({**state, "seed": 1}).encode()
    assert "another run" in resumed("run", **{"last-checkpoint/trainer_state.json": changed})
    for step in ("../../x", -1, None):
        damaged = json.dumps({**state, "step": step}).encode()
        assert "damaged" in resumed("new", **{"last-checkpoint/trainer_state.json": damaged})
    branch = {"odd/trainer_state.json": b"{}", "checkpoint-x/trainer_state.json": b"{}"}
    assert "holds no checkpoint" in resumed("new")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run", "new"}
