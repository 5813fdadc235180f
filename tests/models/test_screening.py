"""A screen in bfloat16 must leave nothing of bfloat16 in the result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import TopKConfig, TopKSAE, screening
from hf_sae.models.sparse_ops import dots, encode_top_k, top_k


K = 8


def screened(x: Tensor, weight: Tensor, bias: Tensor, k: int = K) -> tuple[Tensor, Tensor]:
    return screening.screened_top_k(x, (weight, bias), k, top_k, dots)


def expect_exact(x: Tensor, weight: Tensor, bias: Tensor, k: int = K) -> None:
    values, indices = screened(x, weight, bias, k)
    exact = F.linear(x.double(), weight.double(), bias.double())
    best = exact.topk(k, dim=-1).values
    # the latents that were chosen are the k largest in exact arithmetic, up to float32's own rounding
    torch.testing.assert_close(exact.gather(-1, indices).sort(-1, descending=True).values, best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values.double(), exact.gather(-1, indices), atol=1e-5, rtol=1e-5)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15, 1e25])
def test_the_result_is_that_of_float32(scale: float) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(200, 64), torch.randn(2048, 64), torch.randn(2048)
    values, indices = screened(scale * x, weight, scale * bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(values.double() / scale, exact.gather(-1, indices), atol=1e-4, rtol=1e-5)
    assert torch.equal(indices.sort(-1).values, exact.topk(K, dim=-1).indices.sort(-1).values)


def test_rounding_that_hides_the_winners_is_noticed() -> None:
    """Winners whose every entry is rounded down, behind more losers than there are candidates, half rounded up."""
    d, d_sae = 256, 1024
    losers = torch.cat([torch.full((d // 2,), 1 + 0.51 * 2**-7), torch.full((d // 2,), 0.9996)])
    weight = losers.repeat(d_sae, 1)
    winners = torch.arange(0, d_sae, d_sae // K)
    weight[winners] = 1 + 0.49 * 2**-7
    x, bias = torch.ones(3, d), torch.zeros(d_sae)
    rounded = F.linear(x.bfloat16().float(), weight.bfloat16().float())
    assert not set(rounded.topk(2 * K, dim=-1).indices[0].tolist()) & set(winners.tolist())
    assert screened(x, weight, bias)[1].sort(-1).values.tolist() == [winners.tolist()] * 3


def test_near_ties_and_outliers() -> None:
    torch.manual_seed(1)
    weight = torch.randn(1, 64).repeat(1024, 1) + 1e-4 * torch.randn(1024, 64)
    expect_exact(torch.randn(50, 64), weight, torch.zeros(1024))
    weight[3] *= 1000  # one long row widens the bound for all
    expect_exact(torch.randn(50, 64), weight, torch.randn(1024))


def test_most_tokens_pass_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(512, 128), F.normalize(torch.randn(4096, 128), dim=-1)
    computed = []
    linear = F.linear
    monkeypatch.setattr(screening.F, "linear", lambda x, *rest: (computed.append(len(x)), linear(x, *rest))[1])
    screened(x, weight, torch.zeros(4096), 32)
    assert computed[:2] == [32, 480]
    assert sum(computed[2:]) < 64


def test_a_bound_that_is_too_wide_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32), torch.randn(1, 32).repeat(1024, 1) + 1e-4 * torch.randn(1024, 32)
    computed = []
    linear = F.linear
    monkeypatch.setattr(screening.F, "linear", lambda x, *rest: (computed.append(len(x)), linear(x, *rest))[1])
    screened(x, weight, torch.zeros(1024))
    assert computed == [4, 64]


def test_values_that_are_not_finite_come_through() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 64), torch.randn(1024, 64), torch.zeros(1024)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    values, _ = screened(x, weight, bias)
    assert torch.isfinite(values[[0, 3]]).all()
    assert not torch.isfinite(values[1]).any()
    assert not torch.isfinite(values[2]).all()


def test_training_with_and_without_the_screen_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = TopKSAE(TopKConfig(d_in=512, d_sae=1024, k=K)), torch.randn(100, 512)
    grads = []
    for fast in (True, False):
        monkeypatch.setattr(screening, "bfloat16_pays", lambda kind, fast=fast: fast)
        assert screening.can_screen(x, sae.encoder.weight, K) is fast
        sae.zero_grad()
        sae(x, target=x).loss.backward()
        grads.append({name: p.grad.clone() for name, p in sae.named_parameters()})
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-6, rtol=1e-5)


def test_it_is_for_float32_and_few_latents_of_many() -> None:
    x, weight = torch.randn(4, 512), torch.randn(1024, 512)
    assert not screening.can_screen(x.double(), weight.double(), K)
    assert not screening.can_screen(x, weight, 256)
    assert not screening.can_screen(x[:, :64], weight[:, :64], K)
    with torch.autocast("cpu", torch.bfloat16):
        assert not screening.can_screen(x, weight, K)
        assert encode_top_k(x, weight, torch.zeros(1024), K)[0].dtype == torch.bfloat16
