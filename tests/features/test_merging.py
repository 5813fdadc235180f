"""Parts of a text, gathered apart and merged in any order, are one pass over all of it."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
import torch

from hf_sae.data import TokenBatch
from hf_sae.errors import DataError
from hf_sae.features.coactivation import FrequentPairs
from hf_sae.features.histograms import GrowingHistograms
from hf_sae.features.latent_state import ExampleCounts, LatentState
from hf_sae.features.sums import ExactSums


LATENTS, TOKENS, LENGTH, DOCUMENTS = 24, 9, 12, 7
COUNTS = ExampleCounts(top=4, random=2, bins=2, per_bin=2, zero=3, window=2, pool=20)
Part = tuple[TokenBatch, torch.Tensor, torch.Tensor, torch.Tensor]


def some_batches(seed: int, n: int = 12) -> list[Part]:
    """Few words and few values, so that windows repeat, tie, and fire differently where they repeat."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for _ in range(n):
        ids = torch.randint(0, TOKENS, (3, LENGTH), generator=generator)
        documents = torch.randint(0, DOCUMENTS, (3, 3), generator=generator).repeat_interleave(LENGTH // 3, dim=1)
        keep = torch.rand(3, LENGTH, generator=generator) < 0.9
        batch = TokenBatch(ids, torch.ones_like(ids), keep, documents)
        kept = keep.flatten().nonzero().squeeze(1)
        fires = torch.rand(len(kept), LATENTS, generator=generator) < 0.1
        rows, latents = fires.nonzero().unbind(1)
        values = torch.randint(1, 5, (len(rows),), generator=generator) / 7 * torch.where(latents % 5 == 0, -1, 1)
        parts.append((batch, kept[rows], latents, values * 10.0 ** (latents % 3 - 1)))
    return parts


def gathered(parts: list[Part], **options: Any) -> LatentState:
    state = LatentState(LATENTS, COUNTS, seed=3, **options)
    for part in parts:
        state.add(*part)
    return state


def same(one: LatentState, other: LatentState) -> bool:
    mine, its = one.tensors(), other.tensors()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.mark.parametrize("seed", range(8))
def test_any_split_merged_in_any_order_is_one_pass(seed: int):
    parts, rng = some_batches(seed), random.Random(seed)
    whole = gathered(parts)
    assert int((whole.top.priorities > 0).sum()) > 80
    for shards in (1, 2, 3, 5, 12):
        dealt = [[] for _ in range(shards)]
        for part in parts:
            dealt[rng.randrange(shards)].append(part)
        for share in dealt:
            rng.shuffle(share)
        states = [gathered(share) for share in dealt]
        rng.shuffle(states)
        first, *others = states
        for other in others:
            first.merge(other)
        assert same(first, whole)


def test_merging_changes_nothing_of_what_is_merged():
    parts = some_batches(1)
    first, second = gathered(parts[:6]), gathered(parts[6:])
    before = {name: tensor.clone() for name, tensor in second.tensors().items()}
    first.merge(second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in second.tensors().items())


def test_a_state_that_was_put_away_goes_on_where_it_was():
    parts = some_batches(2)
    first, second = gathered(parts[:5]), LatentState(LATENTS, COUNTS, seed=3)
    second.load(first.tensors())
    for part in parts[5:]:
        second.add(*part)
    assert same(second, gathered(parts))
    tensors = gathered(parts).tensors()
    for wrong in (
        {name: tensor for name, tensor in tensors.items() if name != "sums.words"},
        tensors | {"extra": torch.zeros(1)},
        tensors | {"top.values": torch.zeros(2, 2)},
        tensors | {"top.fired": torch.zeros(LATENTS)},
    ):
        with pytest.raises(DataError, match="not of a state with 24 latents"):
            LatentState(LATENTS, COUNTS, seed=3).load(wrong)


def test_states_of_different_kinds_are_refused():
    state = LatentState(LATENTS, COUNTS, seed=3)
    for other in (
        LatentState(LATENTS, COUNTS, 4),
        LatentState(9, COUNTS, 3),
        LatentState(LATENTS, ExampleCounts(), 3),
    ):
        with pytest.raises(ValueError, match="cannot be merged"):
            state.merge(other)


def test_sums_are_exact_whatever_the_order():
    torch.manual_seed(0)
    values = torch.randn(4000) * 10.0 ** torch.randint(-44, 38, (4000,))
    values = torch.cat([values, torch.tensor([3.4028234e38, -3.4028234e38, 1e-45, -1e-45, 1e-45])])
    rows = torch.randint(0, 3, (len(values),))
    sums, reverse = ExactSums(3), ExactSums(3)
    sums.add(rows, values)
    for row, value in zip(rows.flip(0).split(37), values.flip(0).split(37), strict=True):
        other = ExactSums(3)
        other.add(row, value)
        reverse.merge(other)
    assert torch.equal(sums.words, reverse.words)
    for row in range(3):
        expected = sum(map(Fraction, values[rows == row].double().tolist()), Fraction(0))
        assert sums.mean(row, 7) == float(expected / 7)
    assert ExactSums(1).mean(0, 0) == 0.0


def test_histograms_of_other_ranges_become_those_of_all_values():
    torch.manual_seed(0)
    rows, values = torch.randint(0, 4, (500,)), torch.randn(500) * 10.0 ** torch.randint(-3, 3, (500,))
    whole, first, second = GrowingHistograms(4), GrowingHistograms(4), GrowingHistograms(4)
    whole.add(rows, values)
    small = (values.abs() < 0.01) & (rows != 2)
    first.add(rows[small], values[small])
    second.add(rows[~small], values[~small])
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)
    assert torch.equal(first.exponents, whole.exponents)


def test_frequent_pairs_are_exact_until_one_side_forgets():
    parts = some_batches(4)
    whole, first, second = FrequentPairs(LATENTS), FrequentPairs(LATENTS), FrequentPairs(LATENTS)
    for number, (_, tokens, latents, _) in enumerate(parts):
        whole.add(tokens, latents)
        (first if number % 2 else second).add(tokens, latents)
    first.merge(second)
    assert first.exact
    assert torch.equal(first.keys, whole.keys)
    assert torch.equal(first.counts, whole.counts)
    few = FrequentPairs(LATENTS, partners=1)
    few.merge(whole)
    assert not few.exact
    assert len(few.keys) <= LATENTS
    first.merge(few)
    assert not first.exact
