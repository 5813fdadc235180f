"""Prefetching changes when batches are made and nothing else."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sae.activations import CachedStream, Prefetched, write_cache
from hf_sae.errors import DataError
from hf_sae.models import TopKConfig, TopKSAE
from hf_sae.training import SAETrainer, SAETrainingArguments
from tests.activations.toy import Counting, cache, live, served, tiny_host


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "hf-sae-prefetch"]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, torch.Tensor) else json.loads(json.dumps(v)) for k, v in state.items()}


class Slow(Counting):
    """Notes which thread makes each batch, and takes its time."""

    def batches(self, tokens_per_batch: int, total: int | None = None):
        self.made: list[float] = []
        for rows in super().batches(tokens_per_batch, total):
            time.sleep(0.05)
            self.made.append(time.monotonic())
            self.thread = threading.current_thread().name
            yield rows


class Failing(Counting):
    def batches(self, tokens_per_batch: int, total: int | None = None):
        yield from itertools.islice(super().batches(tokens_per_batch, total), 3)
        raise DataError("the host fell over")


def test_the_same_batches_come_in_the_same_order(tmp_path: Path):
    for plain, other in ((live(), live()), (Counting(100), Counting(100))):
        told = list(plain.batches(20))
        got = list(Prefetched(other).batches(20))
        assert len(got) == len(told)
        assert all(torch.equal(a[p], b[p]) for a, b in zip(got, told, strict=True) for p in a)
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(got, told, strict=True))
    assert threads() == []


def test_batches_are_made_while_a_step_runs_and_not_more_than_asked_for():
    stream = Slow(100)
    batches = Prefetched(stream, depth=3).batches(10)
    next(batches)
    time.sleep(0.4)
    assert stream.position == 40
    assert stream.thread == "hf-sae-prefetch"
    began = time.monotonic()
    for _ in range(3):
        next(batches)
    assert time.monotonic() - began < 0.1
    batches.close()
    assert threads() == []


def test_what_a_thread_does_while_steps_run_takes_no_time_of_its_own():
    began = time.monotonic()
    for _ in Prefetched(Slow(100)).batches(10):
        time.sleep(0.05)
    assert time.monotonic() - began < 0.8  # 1.0 one after the other, 0.55 side by side


def test_counts_and_info_are_of_what_was_served():
    stream = Prefetched(live(), depth=2)
    plain = live()
    batches, told = stream.batches(20), plain.batches(20)
    for _ in range(5):
        next(batches)
        next(told)
        assert stream.counts["served"] == plain.counts["served"] == stream.info()["counts"]["served"]
    batches.close()


@pytest.mark.parametrize("kind", ["live", "cached"])
@pytest.mark.parametrize("stop", [0, 1, 4, 100])
def test_a_state_is_that_of_what_was_served(tmp_path: Path, kind: str, stop: int):
    cache(tmp_path)

    def fresh() -> Prefetched:
        return Prefetched(live() if kind == "live" else CachedStream(tmp_path), depth=3)

    told = served(fresh(), 20)
    stream, got = fresh(), []
    batches = stream.batches(20)
    for rows in itertools.islice(batches, stop):
        got += rows.token_ids.tolist()
    state = through_json(stream.state_dict())
    counts = stream.counts
    batches.close()
    again = fresh()
    again.load_state_dict(state)
    assert again.counts == counts
    assert through_json(again.state_dict()).keys() == state.keys()
    if len(got) < len(told):
        got += served(again, 20)
    else:
        with pytest.raises(DataError, match="at its end"):
            again.batches(20)
    assert got == told


def test_the_state_of_a_cache_is_the_same_with_and_without(tmp_path: Path):
    cache(tmp_path)
    plain, stream = CachedStream(tmp_path), Prefetched(CachedStream(tmp_path))
    told, batches = plain.batches(12), stream.batches(12)
    for _ in range(4):
        next(told)
        next(batches)
        assert stream.state_dict() == plain.state_dict()
    batches.close()
    other = CachedStream(tmp_path, rank=1, world_size=2)
    other.load_state_dict(stream.state_dict())
    assert served(other, 6, 1) == list(range(54, 60))


@pytest.mark.parametrize("host", [True, False])
def test_going_on_after_a_break(host: bool):
    made = live if host else lambda: Counting(100)
    stream, got = Prefetched(made()), []
    told = served(made(), 20)
    while len(got) < len(told):
        got += served(stream, 20, 1)
        assert threads() == []
    assert got == told


def test_a_sample_does_not_depend_on_the_clock_and_serves_nothing():
    told = served(Counting(100), 10)
    for pause in (0, 0.2):
        stream = Prefetched(Slow(100))
        assert stream.sample(15).token_ids.tolist() == told[:15]
        batches = stream.batches(10)
        next(batches)
        time.sleep(pause)
        assert stream.sample(35).token_ids.tolist() == told[10:45]
        assert stream.sample(5).token_ids.tolist() == told[10:15]
        assert [t for rows in batches for t in rows.token_ids.tolist()] == told[10:]


def test_a_sample_of_a_live_stream_does_not_depend_on_the_clock_either():
    """What waits and what the ring holds change as the thread goes on; the sample is taken at a fixed point of that."""

    def samples(slow_host: float, slow_step: float) -> list[list[int]]:
        host = tiny_host()
        host.register_forward_pre_hook(lambda *_: time.sleep(slow_host))
        stream, found = Prefetched(live(host)), []
        for _ in stream.batches(40):
            time.sleep(slow_step)
            found.append(stream.sample(400).token_ids.tolist())
        return found

    assert samples(0.01, 0) == samples(0, 0.03)


def test_a_writer_that_fails_leaves_no_thread(tmp_path: Path):
    stream = Counting(100_000)
    stream.table["mlp_in.0"][3] = 1e6
    with pytest.raises(DataError, match="not finite as float16") as caught:
        write_cache(Prefetched(stream), tmp_path, 100_000, dtype=torch.float16, disable_tqdm=True)
    assert caught.tb is not None  # which would keep the iterator alive
    assert threads() == []


def test_an_error_comes_when_its_batch_is_due_and_the_thread_ends():
    batches = Prefetched(Failing(100), depth=5).batches(10)
    assert [i for _ in range(3) for i in next(batches).token_ids.tolist()] == list(range(30))
    with pytest.raises(DataError, match="fell over"):
        next(batches)
    assert threads() == []


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_the_thread_ends_whatever_happens(how: str):
    batches = Prefetched(Slow(1000)).batches(10)
    next(batches)
    assert len(threads()) == 1
    if how == "close":
        batches.close()
    elif how == "forget":
        del batches
        gc.collect()
    else:
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())
    assert threads() == []


def test_batches_are_put_on_a_device():
    stream = Prefetched(Counting(30), device="meta")
    rows = next(stream.batches(10))
    assert all(x.device.type == "meta" for x in rows.values())
    assert rows.token_ids.tolist() == list(range(10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_copies_are_those_of_the_batches(tmp_path: Path):
    cache(tmp_path, total=100_000, rows=9000)
    told = torch.cat([rows["resid_post.0"] for rows in CachedStream(tmp_path).batches(512)])
    got = [rows["resid_post.0"] * 1 for rows in Prefetched(CachedStream(tmp_path), "cuda").batches(512)]
    assert torch.equal(torch.cat(got).cpu(), told)


def test_a_trainer_ends_the_thread_and_the_stream_goes_on_behind_its_last_batch(tmp_path):
    stream = Prefetched(Slow(1000))
    place, width = next(iter(stream.widths.items()))
    sae = TopKSAE(TopKConfig(d_in=width, d_sae=16, k=1, hook_in=place))
    args = SAETrainingArguments(output_dir=str(tmp_path), total_tokens=60, tokens_per_batch=20, disable_tqdm=True)
    trainer = SAETrainer(sae, args, stream)
    trainer.train()
    assert trainer.tokens == 60
    assert threads() == []
