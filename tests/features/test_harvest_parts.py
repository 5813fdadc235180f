"""What a harvest is made of: samples that are uniform, counts that are exact, a gain that is the norm's."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from hf_sae.data import TokenBatch
from hf_sae.features.coactivation import FrequentPairs, PairTable
from hf_sae.features.harvest_rows import quantile_bounds
from hf_sae.features.histograms import GrowingHistograms
from hf_sae.features.logit_effects import LogitEffects, norm_gain
from hf_sae.features.sampling import ContextPool, RandomContexts
from hf_sae.models import TopKConfig, TopKSAE


def batch_of(documents: list[list[int]]) -> TokenBatch:
    """One document a row, all of one length."""
    ids = torch.tensor(documents)
    numbers = torch.arange(len(ids))[:, None].expand_as(ids)
    return TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), numbers)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_random_contexts_are_uniform_over_different_windows():
    # latent 0 fires in documents 0 to 29, document 29 stands there 40 times more; strength must not matter
    documents = [[100 + i, i, 200 + i] for i in range(60)] + [[129, 29, 229]] * 40
    batch, seen = batch_of(documents), Counter()
    where = torch.tensor([*range(30), *range(60, 100)])
    for seed in range(300):
        store = RandomContexts(torch.arange(2), 2, 6, 1, seed)
        for part in where.split(16):  # batches within a batch: the sample is merged
            store.add(batch, part * 3 + 1, torch.zeros_like(part), 1.0 + part)
        kept = store.windows[0, :, 1].tolist()
        assert len(set(kept)) == 6
        seen.update(kept)
    assert set(seen) == set(range(30))
    # 29 degrees of freedom: above 58.3 with probability 0.001
    assert chi_square([seen[i] for i in range(30)]) < 58.3


def test_latents_are_sampled_independently():
    batch = batch_of([[100 + i, i, 200 + i] for i in range(50)])
    tokens = torch.arange(50) * 3 + 1
    store = RandomContexts(torch.arange(40), 40, 5, 1, 0)
    for latent in range(40):
        store.add(batch, tokens, torch.full((50,), latent), torch.ones(50))
    assert len({tuple(row) for row in store.windows[:, :, 1].tolist()}) > 35


def test_the_pool_is_uniform_over_windows_and_knows_what_fires_where():
    documents = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]
    batch, seen = batch_of([*documents, *documents[:1] * 30]), Counter()
    tokens = (batch.input_ids.flatten() % 4 == 0).nonzero().squeeze(1)
    for seed in range(200):
        pool = ContextPool(2, 10, 1, seed)
        for _ in range(2):  # what was seen before changes nothing
            pool.add(batch, tokens, torch.ones_like(tokens))
        assert len(pool.windows) == len({tuple(w) for w in pool.windows.tolist()}) == 10
        for window, fires in zip(pool.windows.tolist(), pool.fires.tolist(), strict=True):
            assert fires == [False, any(i >= 0 and i % 4 == 0 for i in window)]
        seen.update(window[1] for window in pool.windows.tolist())
        assert all(not pool.fires[place, 1] for place in pool.without(1, 4))
    assert chi_square([seen[i] for i in range(60)]) < 98.3  # 59 degrees of freedom, 0.001


@pytest.mark.parametrize("seed", range(5))
def test_a_growing_histogram_counts_exactly_in_any_order(seed: int):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=4000) * 10.0 ** rng.integers(-6, 6, size=4000)
    values[:200] = 2.0 ** rng.integers(-20, 20, size=200)  # on edges
    values = values.astype(np.float32)
    rows = rng.integers(0, 3, size=4000)
    parts = []
    for order in (np.argsort(np.abs(values)), np.argsort(-np.abs(values)), rng.permutation(4000)):
        histograms = GrowingHistograms(4)
        for part in np.array_split(order, 17):
            histograms.add(torch.from_numpy(rows[part]), torch.from_numpy(values[part]))
        parts.append([histograms.row(i) for i in range(4)])
    for row in range(3):
        here = values[rows == row].astype(np.float64)
        for found in (part[row] for part in parts):
            # a value on an edge is further from zero: the mirror image on the negative side
            positive = np.histogram(here[here > 0], np.append(found.edges[found.edges >= 0], np.inf))[0][:-1]
            negative = np.histogram(-here[here < 0], np.append(-found.edges[found.edges <= 0][::-1], np.inf))[0][:-1]
            assert found.counts.tolist() == [*negative[::-1], *positive]
            assert np.bincount(found.place(here), minlength=len(found.counts)).tolist() == found.counts.tolist()
            assert found.counts.sum() == len(here)
            assert found.counts[0] + found.counts[-1] > 0
    assert parts[0][3].counts.size == parts[0][3].edges.size == 0


def test_tiny_and_huge_values_are_counted_too():
    histograms = GrowingHistograms(2)
    histograms.add(torch.tensor([0, 0, 1]), torch.tensor([1e-44, 3e38, 1e-44]))
    assert histograms.row(0).counts.sum() == 2
    assert histograms.row(1).counts.tolist() == [1]
    assert np.isfinite(histograms.row(0).edges.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("counts", "n", "bounds"),
    [
        ([1, 1, 1, 1], 2, [0, 2, 4]),
        ([8, 1, 1, 0, 1], 4, [0, 1, 5]),
        ([5], 3, [0, 1]),
        ([0, 0, 6, 6], 2, [0, 3, 4]),
    ],
)
def test_intervals_cut_where_shares_are_nearest(counts: list[int], n: int, bounds: list[int]):
    found = quantile_bounds(np.array(counts), n)
    assert found == bounds
    assert all(sum(counts[a:b]) for a, b in pairwise(found))


def random_code(tokens: int, rates: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How often pairs fire together, and the entries of a random code."""
    torch.manual_seed(seed)
    fires = torch.rand(tokens, len(rates)) < rates
    rows, latents = fires.nonzero(as_tuple=True)
    order = torch.randperm(len(rows))
    order = order[rows[order].sort(stable=True).indices]  # tokens ascend, latents in any order
    return fires.long().T @ fires.long(), rows[order], latents[order]


@pytest.mark.parametrize("kind", [PairTable, FrequentPairs])
def test_pairs_are_counted_exactly(kind: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_sae.features.coactivation._PAIRS_AT_ONCE", 50)
    counter, total = kind(30), torch.zeros(30, 30, dtype=torch.long)
    for seed in range(3):
        together, rows, latents = random_code(40, torch.linspace(0.01, 0.6, 30), seed)
        counter.add(rows * 7, latents)
        total += together
    expected = total.fill_diagonal_(0)
    indices, counts = counter.partners(torch.tensor([0, 29, 11]), 30)
    for place, latent in enumerate((0, 29, 11)):
        order = sorted(range(30), key=lambda j: (-int(expected[latent, j]), j))
        assert indices[place].tolist() == order
        assert counts[place].tolist() == [int(expected[latent, j]) for j in order]
    assert counter.exact
    counter.add(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))


def test_frequent_pairs_forget_rare_ones_and_say_so():
    rates = torch.tensor([0.05] * 54 + [0.6] * 6)
    counter, total = FrequentPairs(60, partners=8), torch.zeros(60, 60, dtype=torch.long)
    for seed in range(20):
        together, rows, latents = random_code(50, rates, seed)
        counter.add(rows, latents)
        total += together
        assert len(counter.keys) <= 2 * 8 * 60
    total.fill_diagonal_(0)
    assert not counter.exact
    indices, counts = counter.partners(torch.arange(60), 5)
    assert (counts <= total.gather(1, indices)).all()
    assert torch.equal(counts[-1], total[-1].sort(descending=True).values[:5])  # far more frequent ones stay


def gain_by_difference(norm: nn.Module, head: nn.Module, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    step = 1e-2 * direction  # Llama's norm computes in 32 bits
    return (head(norm(x + step)) - head(norm(x - step))) / 2e-2


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_effects_are_the_derivative_of_the_logits_where_the_size_does_not_change(kind: str, width: int):
    torch.manual_seed(0)
    size = {"vocab_size": 50}
    if kind == "llama":
        host = LlamaForCausalLM(
            LlamaConfig(hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, **size)
        )
        norm = host.model.norm
    else:
        host = GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=1, n_head=2, n_positions=16, **size))
        norm = host.transformer.ln_f
        norm.bias.normal_()
    norm.weight.uniform_(-2, 2)
    sae = TopKSAE(TopKConfig(d_in=width, d_sae=6, k=2, hook_in="resid_post.0"))
    sae.decoder.weight.normal_()
    path = {"llama": "model.layers.0", "gpt2": "transformer.h.0"}[kind]
    rows = sae.W_dec.double()
    x = torch.randn(width, dtype=torch.double)
    if kind == "gpt2":
        x = x - x.mean()
    expected = []
    for row in rows:
        moved = row - row.mean() * (kind == "gpt2")
        x = x - (x @ moved) / (moved @ moved) * moved  # a small step changes its direction, not its size
        x = x / x.square().mean().sqrt()
        expected.append(gain_by_difference(norm.double(), host.lm_head.double(), x, row))
    host.float()
    expected = torch.stack(expected)
    for place in ("resid_post.0", path):
        sae.config.hook_in = place
        effects = LogitEffects(sae, host, 50)
        found = effects.of(torch.arange(6), 50)
        assert found is not None
        ids, values = found.promoted
        assert torch.allclose(values.double(), expected.gather(1, ids), rtol=1e-3, atol=1e-4)
        assert ("centring" in effects.note) == (kind == "gpt2")


@pytest.mark.parametrize("width", [5, 8])
def test_the_gain_is_found_by_what_a_norm_does(width: int):
    torch.manual_seed(0)
    for norm, centres, offset in (
        (nn.LayerNorm(width), True, 0),
        (nn.RMSNorm(width), False, 0),
        (GemmaRMSNorm(width), False, 1),  # its weight is added to 1
    ):
        norm.weight.data.normal_()
        gain, centred = norm_gain(norm, width)
        assert centred is centres
        assert torch.allclose(gain, norm.weight.detach() + offset, atol=1e-4)


def test_units_of_a_scaled_input_are_undone():
    torch.manual_seed(0)
    host = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    found = []
    for fields in ({}, {"input_norm": "scalar", "input_scale": 4.0}):
        torch.manual_seed(1)
        sae = TopKSAE(TopKConfig(d_in=16, d_sae=6, k=2, hook_in="resid_post.0", **fields))
        effects = LogitEffects(sae, host, 50).of(torch.arange(6), 3)
        assert effects is not None
        found.append(effects.promoted[1])
    assert torch.allclose(found[0], found[1] * 4)


def test_weights_that_were_put_away_give_the_same_effects():
    torch.manual_seed(0)
    host = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    host.model.norm.weight.data.uniform_(0.5, 2)
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=6, k=2, hook_in="resid_post.0"))
    before = LogitEffects(sae, host, 50).of(torch.arange(6), 3)
    cpu_offload(host, execution_device=torch.device("cpu"))
    assert host.lm_head.weight.device.type == "meta"
    after = LogitEffects(sae, host, 50).of(torch.arange(6), 3)
    assert before is not None
    assert after is not None
    assert torch.equal(before.promoted[1], after.promoted[1])


@pytest.mark.parametrize("place", ["final", "model.norm"])
def test_behind_the_final_norm_its_gain_is_not_applied_again(host: LlamaForCausalLM, place: str):
    torch.manual_seed(0)
    norm = host.model.norm.weight.detach().clone()
    host.model.norm.weight.data.uniform_(0.5, 2)
    sae = TopKSAE(TopKConfig(d_in=16, d_sae=6, k=2, hook_in=place))
    effects = LogitEffects(sae, host, 320)
    host.model.norm.weight.data.copy_(norm)
    found = effects.of(torch.arange(6), 5)
    assert found is not None
    expected = (sae.W_dec @ host.lm_head.weight.detach().T)[:, :320].topk(5)
    assert torch.equal(found.promoted[0], expected.indices)
    assert torch.allclose(found.promoted[1], expected.values, atol=1e-6)
    assert "behind the final norm" in effects.note
