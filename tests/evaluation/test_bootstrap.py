"""Intervals: coverage, determinism, independence of batches."""

from __future__ import annotations

import torch

from hf_sae.evaluation.bootstrap import DocumentSums, intervals, resample


def ratio(totals):
    return {"mean": totals["value"] / totals["tokens"]}


def clustered(generator: torch.Generator, documents: int = 60) -> dict[str, torch.Tensor]:
    """Documents of unequal length whose tokens share an offset: token-level intervals would be far too narrow."""
    tokens = torch.randint(5, 60, (documents,), generator=generator).double()
    offset = torch.randn(documents, generator=generator).double()
    noise = torch.randn(documents, generator=generator).double() * tokens.sqrt()
    return {"tokens": tokens, "value": tokens * (2 + offset) + noise}


def test_intervals_cover_the_truth_about_95_percent_of_the_time():
    generator = torch.Generator().manual_seed(0)
    trials, hits = 300, 0
    for trial in range(trials):
        low, high = intervals(clustered(generator), ratio, seed=trial, resamples=300)["mean"]
        hits += low <= 2 <= high
    assert 0.90 <= hits / trials <= 0.98


def test_resamples_are_sums_over_documents_and_seeded():
    table = {"tokens": torch.ones(7, dtype=torch.float64), "value": torch.arange(7).double()}
    state = torch.random.get_rng_state()
    totals = resample(table, seed=3, resamples=50)
    assert totals["tokens"].eq(7).all()
    assert totals["value"].std() > 0
    assert torch.equal(resample(table, seed=3, resamples=50)["value"], totals["value"])
    assert not torch.equal(resample(table, seed=4, resamples=50)["value"], totals["value"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_blocks_do_not_change_the_distribution(monkeypatch):
    table = {"tokens": torch.ones(7, dtype=torch.float64), "value": torch.arange(7).double()}
    monkeypatch.setattr("hf_sae.evaluation.bootstrap._BLOCK_ELEMENTS", 20)
    totals = resample(table, seed=3, resamples=2001)
    assert totals["value"].shape == (2001,)
    assert abs(totals["value"].mean().item() - 21) < 0.5


def test_one_document_has_no_interval():
    assert intervals({"tokens": torch.ones(1), "value": torch.ones(1)}, ratio) == {"mean": None}


def test_sums_per_document_do_not_depend_on_the_batches():
    documents = torch.tensor([5, 5, 9, 9, 9, 2])
    values = torch.arange(6.0)
    whole, parts = DocumentSums(), DocumentSums()
    whole.add(documents, {"value": values})
    for i in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts.add(documents[i], {"value": values[i]})
    assert whole.table()["value"].tolist() == [5, 1, 9]
    assert parts.table()["value"].tolist() == [5, 1, 9]


def test_columns_share_their_documents():
    sums = DocumentSums()
    sums.add(torch.tensor([1, 2]), {"value": torch.tensor([1.0, 2.0])})
    sums.add(torch.tensor([2, 3]), {"loss": torch.tensor([10.0, 20.0])})
    assert {key: column.tolist() for key, column in sums.table().items()} == {"value": [1, 2, 0], "loss": [0, 10, 20]}
