"""A reader that says how many tokens it takes: the host reads those, and no more than a ring waits in vain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_sae import SAETrainer, SAETrainingArguments, TopKConfig, TopKSAE
from hf_sae.activations import CachedStream, Prefetched, write_cache
from tests.activations.toy import Counting, cache, live


HOST_BATCH = 2 * 16
POINT = "resid_post.1"


def read_of(stream) -> int:
    """Tokens that went through the host for their activations."""
    return stream.counts["seen"] - stream.counts["masked"]


def ids(batches) -> list[tuple[int, ...]]:
    return [tuple(row) for rows in batches for row in rows.ids.tolist()]


@pytest.mark.parametrize("total", [7, 90, 200, 500])
def test_the_host_reads_what_is_taken(total):
    stream = live()
    got = list(stream.batches(30, total))
    assert [rows.count for rows in got] == [30] * (total // 30) + ([total % 30] if total % 30 else [])
    assert stream.counts["served"] == total
    assert total <= read_of(stream) < total + HOST_BATCH
    all_read = live()
    next(all_read.batches(30))
    assert read_of(all_read) >= all_read.ring.capacity  # without a total the ring is full from the first batch on


def test_nothing_is_read_where_nothing_is_taken(tmp_path: Path):
    stream = live()
    assert list(stream.batches(30, 0)) == list(Prefetched(stream).batches(30, 0)) == []
    assert stream.counts["seen"] == 0
    cache(tmp_path)
    assert list(CachedStream(tmp_path).batches(30, 0)) == []


def test_no_token_is_lost_or_served_twice_by_those_who_go_on():
    whole = sorted(ids(live().batches(30)))
    stream = live()
    parts = ids(stream.batches(30, 70)) + ids(stream.batches(20, 333)) + ids(stream.batches(30))
    assert sorted(parts) == whole


def test_the_ring_is_whole_again_for_those_who_go_on():
    stream = live()
    list(stream.batches(30, 70))
    next(stream.batches(30))
    assert stream.ring.remaining == stream.ring.capacity - 30


def test_what_runs_empty_is_still_shuffled():
    stream = live()
    order = [document for _, document in ids(stream.batches(30, 120))]
    assert order != sorted(order)


@pytest.mark.parametrize("taken", [1, 3, 9])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_restored_stream_goes_on_to_the_bit(taken, ahead):
    def make():
        return Prefetched(live()) if ahead else live()

    told = list(make().batches(30, 450))
    stream = make()
    batches = stream.batches(30, 450)
    for _ in range(taken):
        next(batches)
    state = stream.state_dict()
    again = make()
    again.load_state_dict(state)
    got = list(again.batches(30, 450 - 30 * taken))
    assert ids(got) == ids(told[taken:])
    assert all(torch.equal(a[POINT], b[POINT]) for a, b in zip(got, told[taken:], strict=True))


def test_a_sample_of_an_empty_ring_is_of_what_comes_next():
    stream = live()
    list(stream.batches(30, 120))
    assert stream.ring.remaining == 0
    sample = stream.sample(40)
    assert sample.count == 40
    assert ids(stream.batches(40, 40)) != ids([sample])  # shuffled
    again = live()
    list(again.batches(30, 120))
    assert sorted(ids(again.batches(40, 40))) == sorted(ids([sample]))
    rest = live(count=3)
    list(rest.batches(30, 30))
    assert rest.sample(10**6).count == sum(batch.count for batch in rest.batches(30)) > 0
    assert rest.sample(5).count == 0


def test_what_is_read_ahead_ends_with_it():
    inner = live()
    assert len(ids(Prefetched(inner, depth=3).batches(30, 200))) == 200
    assert read_of(inner) < 200 + HOST_BATCH


def test_a_cache_serves_so_many_too(tmp_path: Path):
    cache(tmp_path)
    stream = CachedStream(tmp_path)
    whole = ids(CachedStream(tmp_path).batches(20))
    assert ids(stream.batches(20, 50)) == whole[:50]
    assert ids(stream.batches(20, 500)) == whole[50:]


def test_a_cache_is_written_from_as_many_as_it_holds(tmp_path: Path):
    stream = Counting(1000)
    write_cache(stream, tmp_path, 130, rows_per_shard=50, disable_tqdm=True)
    assert stream.position == 130
    host_side = live()
    write_cache(host_side, tmp_path / "host", 130, rows_per_shard=50, disable_tqdm=True)
    assert read_of(host_side) < 130 + HOST_BATCH < host_side.ring.capacity


@pytest.mark.parametrize("steps", [3, 20])
def test_a_run_reads_what_it_trains_on(tmp_path: Path, steps: int):
    stream = live(repeat=True)
    sae = TopKSAE(TopKConfig(d_in=8, d_sae=16, k=2, hook_in=POINT))
    args = SAETrainingArguments(
        output_dir=str(tmp_path), total_tokens=30 * steps - 5, tokens_per_batch=30, disable_tqdm=True
    )
    SAETrainer(sae, args, stream).train()
    assert stream.counts["served"] == 30 * steps
    assert read_of(stream) < 30 * steps + HOST_BATCH
