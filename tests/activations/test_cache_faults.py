"""What goes wrong with caches: a process that is killed, a full disk, damaged files, states of something else."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae.activations import CachedStream, write_cache
from hf_sae.activations.cache import progress, writer
from hf_sae.activations.cache.checking import verify
from hf_sae.activations.cache.sources import FolderShards
from hf_sae.errors import DataError
from tests.activations.toy import Counting, cache, files, live, served


@pytest.fixture(autouse=True)
def one_thread():
    """A forked process has none of the threads that torch made before: with more than one it would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def killed_at(step: int, make: Any, folder: Path, **options: Any) -> None:
    """Writes in another process, which is killed before its rename number `step`."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        return
    try:
        real, count = os.replace, iter(range(step + 1, -1, -1))

        def replace(source: Any, target: Any) -> None:
            if not next(count) - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replace
        write_cache(make(), folder, **options)
    finally:
        os._exit(7)


@pytest.mark.parametrize("step", range(9))
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, step: int):
    options: dict[str, Any] = {"n_tokens": 100, "rows_per_shard": 30, "disable_tqdm": True}
    write_cache(Counting(120), tmp_path / "whole", **options)
    killed_at(step, lambda: Counting(120), tmp_path / "killed", **options)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    stream = Counting(120)
    write_cache(stream, tmp_path / "killed", **options, resume=True)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    if step >= 2:
        assert stream.pulled == 0  # the first batch of 4096 has it all: what was left over was saved


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_killed_run_on_a_host_goes_on_to_the_byte(tmp_path: Path, step: int):
    options: dict[str, Any] = {"n_tokens": 500, "rows_per_shard": 70, "dtype": torch.int8, "disable_tqdm": True}
    write_cache(live(), tmp_path / "whole", **options)
    killed_at(step, live, tmp_path / "killed", **options)
    write_cache(live(), tmp_path / "killed", **options, resume=True)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_killed_at_the_end_of_the_data_and_before_the_manifest(tmp_path: Path):
    options: dict[str, Any] = {"n_tokens": 500, "rows_per_shard": 35, "disable_tqdm": True}
    write_cache(Counting(70), tmp_path / "whole", **options)
    killed_at(4, lambda: Counting(70), tmp_path / "killed", **options)
    write_cache(Counting(70), tmp_path / "killed", **options, resume=True)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_full_disk_is_an_error_and_the_shards_before_it_stay_whole(tmp_path: Path, monkeypatch: Any):
    cache(tmp_path / "whole")
    real = progress.save_file

    def full(tensors: Any, path: Path, **options: Any) -> None:
        if "00002" in path.name:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **options)

    monkeypatch.setattr(progress, "save_file", full)
    with pytest.raises(DataError, match=r"00002.*No space left.*resume=True"):
        cache(tmp_path / "full")
    shards = {"activations-00000.safetensors", "activations-00001.safetensors"}
    assert files(tmp_path / "full").keys() == {*shards, progress.PROGRESS}
    assert all(files(tmp_path / "full")[name] == files(tmp_path / "whole")[name] for name in shards)
    monkeypatch.undo()
    cache(tmp_path / "full", resume=True)
    assert files(tmp_path / "full") == files(tmp_path / "whole")


def test_a_finished_cache_stays_and_a_begun_one_is_not_overwritten(tmp_path: Path):
    stream = cache(tmp_path)
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"holds .* already"):
        cache(tmp_path)
    again = Counting(100)
    write_cache(again, tmp_path, 100, rows_per_shard=30, resume=True)
    assert again.position == 0
    assert stream.position == 100
    assert files(tmp_path) == before
    killed_at(4, lambda: Counting(120), tmp_path / "k", n_tokens=100, rows_per_shard=30, disable_tqdm=True)
    with pytest.raises(DataError, match="resume=True"):
        cache(tmp_path / "k")
    with pytest.raises(DataError, match=r"begun with rows_per_shard=30, and this call has 31"):
        write_cache(Counting(120), tmp_path / "k", 100, rows_per_shard=31, resume=True)
    with pytest.raises(DataError, match=r"no finished activation cache.*--resume"):
        CachedStream(tmp_path / "k")


DAMAGE = {
    "a flipped bit": lambda path: flip(path, -3),
    "a flipped bit of a number in the header": lambda path: flip(path, 20),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named_before_its_first_token_and_skipped_on_request(tmp_path: Path, kind: str):
    cache(tmp_path)
    DAMAGE[kind](tmp_path / "activations-00001.safetensors")
    batches = CachedStream(tmp_path).batches(10)
    assert [i for _ in range(3) for i in next(batches).token_ids.tolist()] == list(range(30))
    with pytest.raises(
        DataError, match=r"activations-00001.safetensors' is damaged: it.*skip_corrupt=True.*30 tokens"
    ):
        next(batches)
    stream = CachedStream(tmp_path, skip_corrupt=True, repeat=True)
    assert served(stream, 10, 140)[:70] == [*range(30), *range(60, 100)]
    assert stream.counts["skipped_tokens"] == 30 * stream.counts["skipped_shards"]
    assert stream.counts["skipped_shards"] == 2  # once in each epoch
    assert list(verify(FolderShards(tmp_path))) == ["activations-00001.safetensors"]


def test_a_state_after_the_error_goes_on_once_the_shard_is_repaired(tmp_path: Path):
    cache(tmp_path)
    flip(tmp_path / "activations-00001.safetensors", -3)
    stream = CachedStream(tmp_path)
    batches = stream.batches(25)
    next(batches)
    with pytest.raises(DataError, match="is damaged"):
        next(batches)
    state = stream.state_dict()
    flip(tmp_path / "activations-00001.safetensors", -3)
    again = CachedStream(tmp_path)
    again.load_state_dict(state)
    assert served(again, 25) == list(range(25, 100))


def test_processes_skip_the_same_shard(tmp_path: Path):
    cache(tmp_path, total=96, rows=8)
    flip(tmp_path / "activations-00004.safetensors", -1)
    parts = [served(CachedStream(tmp_path, skip_corrupt=True, rank=r, world_size=2), 16) for r in range(2)]
    assert sorted(parts[0] + parts[1]) == [*range(32), *range(40, 96)]


def test_a_shard_is_checked_once_and_not_at_all_without_verify(tmp_path: Path, monkeypatch: Any):
    cache(tmp_path)
    looked: list[bool] = []
    from hf_sae.activations.cache import checking

    real = checking.problem
    monkeypatch.setattr(
        checking, "problem", lambda path, shard, contents=True: looked.append(contents) or real(path, shard, contents)
    )
    served(CachedStream(tmp_path, repeat=True), 10, 350)
    assert looked == [True] * 4
    looked.clear()
    flip(tmp_path / "activations-00001.safetensors", -3)
    assert len(served(CachedStream(tmp_path, verify=False), 10)) == 100
    assert looked == [False] * 4


def test_nothing_but_damage_is_an_error_and_no_endless_search(tmp_path: Path):
    cache(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        flip(path, -1)
    with pytest.raises(DataError, match="every shard is damaged"):
        next(CachedStream(tmp_path, skip_corrupt=True, repeat=True).batches(10))


def test_a_state_of_another_cache_or_order_is_refused(tmp_path: Path):
    cache(tmp_path / "a")
    cache(tmp_path / "b", total=90)
    state = CachedStream(tmp_path / "a").state_dict()
    with pytest.raises(DataError, match="saved with cache="):
        CachedStream(tmp_path / "b").load_state_dict(state)
    with pytest.raises(DataError, match="saved with seed=0"):
        CachedStream(tmp_path / "a", seed=1).load_state_dict(json.loads(json.dumps(state)))


def test_a_cache_holds_one_batch_and_one_shard_while_it_is_written(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(writer, "BATCH", 16)
    made = writer._Writer(Counting(100), tmp_path, 100, 30, None)
    tmp_path.mkdir(exist_ok=True)
    held = sum(tensor.nbytes for tensor in made.buffer.values())
    assert held == 30 * (9 * 4 + 8)
