"""A pass that several processes share, or that is killed and goes on, gives the dataset of one process in one go."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae.errors import DataError
from hf_sae.features.harvest import harvest
from hf_sae.features.reading import FeatureDataset
from hf_sae.features.saved_pass import PROGRESS
from tests.forks import Fork, ranks, together

from .test_harvest import COUNTS, HOST, OPTIONS, TABLE, TEXTS, TOKENIZER, gather, make_sae


MODULE = "tests.features.passes"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    saes = {"a": make_sae(TABLE), "b": make_sae(TABLE.flip(1))}
    harvest(saes, HOST, TOKENIZER, TEXTS, folder, n_tokens=10**6, examples=COUNTS, **OPTIONS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_write_the_files_of_one(whole: Path, tmp_path: Path):
    (log := tmp_path / "log").mkdir()
    assert together(2, MODULE, str(tmp_path / "out"), "plain", output=log / "log", timeout=120).count("done") == 2
    assert contents(tmp_path / "out") == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def test_a_process_that_dies_stops_the_others_and_two_go_on_where_they_were(whole: Path, tmp_path: Path):
    first, second = ranks(2, MODULE, str(tmp_path / "out"), "die", output=tmp_path / "log")
    assert second.wait(timeout=100) == -signal.SIGKILL, second.output
    assert first.wait(timeout=60) == 1, "nobody but the process itself ends the one that is left"
    assert not (tmp_path / "out").exists()
    facts = json.loads((tmp_path / "out.unfinished" / PROGRESS).read_text())
    assert 300 <= facts["progress"]["tokens"] < 1200
    assert {(file["rank"], file["sae"]) for file in facts["files"]} == {(0, "a"), (0, "b"), (1, "a"), (1, "b")}
    # one process goes on with what two had saved
    saes = {"a": make_sae(TABLE), "b": make_sae(TABLE.flip(1))}
    harvest(saes, HOST, TOKENIZER, TEXTS, tmp_path / "out", n_tokens=10**6, examples=COUNTS, **OPTIONS, resume=True)
    assert contents(tmp_path / "out") == contents(whole)
    assert not (tmp_path / "out.unfinished").exists()


def test_a_run_that_was_killed_goes_on_and_reads_no_batch_twice(whole: Path, tmp_path: Path):
    run = Fork(MODULE, str(tmp_path / "out"), "wait", output=tmp_path / "log")
    progress = tmp_path / "out.unfinished" / PROGRESS
    until = time.monotonic() + 100
    while not (progress.exists() and json.loads(progress.read_text())["progress"]["tokens"] > 600):
        assert run.poll() is None, run.output
        assert time.monotonic() < until
        time.sleep(0.02)
    run.kill()
    assert run.wait(timeout=10) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = sorted(path.name for path in (tmp_path / "out.unfinished").glob("tokens-*"))
    assert 1 <= len(left) <= 2, "what was saved before is removed"
    done = json.loads(progress.read_text())["progress"]["batches"]
    calls = []
    saes = {"a": make_sae(TABLE), "b": make_sae(TABLE.flip(1))}
    encode = saes["a"].encode_sparse
    saes["a"].encode_sparse = lambda hidden: calls.append(1) or encode(hidden)
    found = harvest(
        saes, HOST, TOKENIZER, TEXTS, tmp_path / "out", n_tokens=10**6, examples=COUNTS, **OPTIONS, resume=True
    )
    found.validate()
    assert contents(tmp_path / "out") == contents(whole)
    batches = -(-sum(len(TOKENIZER(text)["input_ids"]) + 2 for text in TEXTS) // (32 * 4))
    assert 0 < len(calls) <= batches - done + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pass that failed after it was saved."""
    sae, calls = make_sae(TABLE), []
    encode = sae.encode_sparse

    def fails(hidden: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("power is off")
        return encode(hidden)

    sae.encode_sparse = fails
    with pytest.raises(RuntimeError, match="power is off"):
        gather(tmp_path / "out", sae, save_tokens=200)
    assert (tmp_path / "out.unfinished" / PROGRESS).is_file()
    return tmp_path / "out"


def test_an_unfinished_pass_is_not_thrown_away_unasked(unfinished: Path):
    with pytest.raises(DataError, match="unfinished pass: go on with it by resume=True"):
        gather(unfinished)
    found = gather(unfinished, overwrite=True)
    assert found.manifest.rows("features") == len(TABLE[0])
    assert [path.name for path in unfinished.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "was begun with the (data|options)"),
        ({"batch_size": 3}, "was begun with the options"),
        ({"context_length": 16}, "was begun with the"),
    ],
)
def test_other_options_are_refused(unfinished: Path, changed: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        gather(unfinished, resume=True, **changed)


def test_another_autoencoder_other_text_and_too_few_tokens_are_refused(unfinished: Path):
    with pytest.raises(DataError, match="begun with the autoencoders"):
        gather(unfinished, make_sae(TABLE.flip(0)), resume=True)
    options: dict[str, Any] = {"examples": COUNTS, **OPTIONS, "resume": True}
    with pytest.raises(DataError, match="not those of the pass that was saved"):
        harvest(make_sae(TABLE), HOST, TOKENIZER, TEXTS[::-1], unfinished, n_tokens=10**6, **options)
    with pytest.raises(DataError, match="tokens were read before, and n_tokens=100"):
        harvest(make_sae(TABLE), HOST, TOKENIZER, TEXTS, unfinished, n_tokens=100, **options)
    host = type(HOST)(HOST.config).eval()
    with pytest.raises(DataError, match="begun with the host"):
        harvest(make_sae(TABLE), host, TOKENIZER, TEXTS, unfinished, n_tokens=10**6, **options)


def test_damaged_states_are_refused(unfinished: Path):
    folder = unfinished.with_name("out.unfinished")
    facts = json.loads((folder / PROGRESS).read_text())
    state = folder / facts["files"][0]["file"]
    data = state.read_bytes()
    state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="not what was saved: start afresh"):
        gather(unfinished, resume=True)
    for wrong in (
        facts | {"files": [facts["files"][0] | {"file": "../../secret.safetensors"}]},
        facts | {"files": []},
        facts | {"version": 99},
        facts | {"progress": {"lines": 1}},
        [],
    ):
        (folder / PROGRESS).write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=r"cannot be read|another version|was begun with"):
            gather(unfinished, resume=True)
    (folder / PROGRESS).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        gather(unfinished, resume=True)


def test_without_anything_saved_resuming_begins(tmp_path: Path):
    found = gather(tmp_path / "out", resume=True, save_tokens=None)
    assert isinstance(found, FeatureDataset)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="save_tokens=0"):
        gather(tmp_path / "other", save_tokens=0)
