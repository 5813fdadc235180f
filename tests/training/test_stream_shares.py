"""The position of a stream on another number of processes, and streams that all processes read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_sae.activations import ActivationStream
from hf_sae.errors import DataError
from hf_sae.training import SAETrainingArguments
from hf_sae.training.feed import Feed
from hf_sae.training.parallel import Processes
from tests.training.streams import tiny_host, tiny_tokenizer


N = 400


def stream(rank: int, world_size: int, dataset=None, **options) -> ActivationStream:
    texts = [" ".join([f"w{2 + i % 60}"] * 30) for i in range(N)] if dataset is None else dataset
    given = {"context_length": 16, "batch_size": 4, "ring_bytes": 40_000, "rank": rank, "world_size": world_size}
    return ActivationStream(tiny_host(), tiny_tokenizer(), texts, "resid_post.0", **given | options)


def read_by(source: ActivationStream) -> set[int]:
    """Numbers of the documents that reach the host from here on."""
    return {int(n) for batch in source.rows for n in batch.documents.unique() if n >= 0}


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_no_document_is_read_again_and_none_ahead_is_left_out(before: int, after: int) -> None:
    old = [stream(rank, before) for rank in range(before)]
    for rank, source in enumerate(old):  # not all are equally far
        for _, _batch in zip(range(3 + 2 * rank), source.batches(64), strict=False):
            pass
    states = [source.state_dict() for source in old]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
    behind = max(rank + before * (s["rows.data.behind"]["taken"] - 1) for rank, s in enumerate(states)) + 1
    assert 0 < behind < N - 50
    new = [stream(rank, after) for rank in range(after)]
    for source in new:
        source.load_states(states)
    found = [read_by(source) for source in new]
    assert set().union(*found) == set(order[-(-behind // before) * before :])
    assert sum(map(len, found)) == len(set().union(*found)), "two processes read the same document"


def test_a_resumed_stream_serves_and_saves(tmp_path: Path) -> None:
    old = [stream(rank, 2, repeat=True) for rank in range(2)]
    for source in old:
        next(source.batches(64))
    new = stream(0, 1, repeat=True)
    new.load_states([source.state_dict() for source in old])
    assert new.state_dict()["rows.data.behind"]["taken"] > 0  # before the first batch, too
    batches = new.batches(64)
    for _ in range(40):  # over the end of the epoch
        assert len(next(batches)["resid_post.0"]) == 64
    again = stream(0, 1, repeat=True)
    again.load_state_dict(new.state_dict())
    assert torch.equal(next(again.batches(64))["resid_post.0"], next(batches)["resid_post.0"])


def test_other_data_or_whole_files_are_refused() -> None:
    state = stream(0, 2)
    next(state.batches(64))
    with pytest.raises(DataError, match="context_length"):
        stream(0, 1, context_length=8).load_states([state.state_dict()] * 2)
    files = Dataset.from_dict({"text": ["w3 w4"] * 40}).to_iterable_dataset(num_shards=4)
    old = stream(0, 2, files)
    next(old.batches(16))
    with pytest.raises(DataError, match="whole files"):
        stream(0, 1, files).load_states([old.state_dict()] * 2)


def test_a_stream_that_is_not_divided_gives_each_its_part() -> None:
    args = SAETrainingArguments(output_dir="x", tokens_per_batch=65)
    whole = next(stream(0, 1).batches(65))["resid_post.0"]
    parts = []
    for rank in range(3):
        processes = Processes.__new__(Processes)
        processes.rank, processes.size = rank, 3
        feed = Feed(stream(0, 1), args, processes)
        feed.open()
        parts.append(next(feed._batches)["resid_post.0"])
    assert torch.equal(torch.cat(parts), whole)
    wrong = Feed(stream(0, 2), args, processes)
    with pytest.raises(DataError, match="divided among 2 processes, and 3 are running"):
        wrong.sample(10)
