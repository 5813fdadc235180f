"""Products with latents of which few are non-zero are the dense ones, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from hf_sae.models import AutoSAE, JumpReLUConfig, StandardConfig, mostly_zero
from hf_sae.models.outputs import TrainingState
from hf_sae.training.optimizer import RowAdam


TOKENS, D_IN, D_SAE = 21, 6, 64


def latents_with(per_token: int) -> torch.Tensor:
    latents = torch.randn(TOKENS, D_SAE, dtype=torch.float64)
    return latents * (torch.rand(TOKENS, D_SAE).argsort(-1) < per_token)


@pytest.mark.parametrize(("per_token", "sparse"), [(0, True), (3, True), (9, False), (D_SAE, False)])
def test_the_choice_is_by_what_is_in_the_matrix(per_token, sparse):
    assert mostly_zero.is_mostly_zero(latents_with(per_token)) is sparse


@pytest.mark.parametrize("per_token", [0, 3, 20])
@pytest.mark.parametrize("factored", [True, False])
def test_decode_and_encode_have_the_values_and_gradients_of_dense_products(per_token, factored):
    torch.manual_seed(per_token)
    latents, weight = latents_with(per_token), torch.randn(D_SAE, D_IN, dtype=torch.float64)
    x, bias, shift = torch.randn(TOKENS, D_IN).double(), torch.randn(D_SAE).double(), torch.randn(D_IN).double()
    upstream, upstream_pre = torch.randn(TOKENS, D_IN).double(), latents_with(per_token)
    results = []
    for ours in (True, False):
        z, w, a, e, b, s = (t.clone().requires_grad_() for t in (latents, weight, x, weight, bias, shift))
        optimizer = RowAdam([w, e], factored=[w, e] if ours and factored else [])
        out = mostly_zero.decode(z, w) if ours else z @ w
        pre = mostly_zero.encode(a, (e, b), s) if ours else (a - s) @ e.T + b
        torch.autograd.backward([out, pre], [upstream, upstream_pre])
        optimizer.materialize()
        results.append([out.detach(), pre.detach(), *(t.grad for t in (z, w, a, e, b, s))])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, torch.zeros_like(actual) if expected is None else expected)


@pytest.mark.parametrize("config", [StandardConfig, JumpReLUConfig])
def test_an_architecture_has_the_same_gradients_sparse_and_dense(config, monkeypatch):
    torch.manual_seed(0)
    sae = AutoSAE.from_config(config(d_in=D_IN, d_sae=D_SAE)).double().train()
    with torch.no_grad():
        sae.encoder.bias.fill_(-1.0)
    x, results = torch.randn(TOKENS, D_IN, dtype=torch.float64), []
    for share in (1, 10**9):
        monkeypatch.setitem(mostly_zero._SPARSE_BELOW, "cpu", share)
        sae.zero_grad()
        output = sae(x, state=TrainingState(normaliser=3.0))
        assert 0 < float(output.code.l0()) < D_SAE / 2
        output.loss.backward()
        results.append({name: p.grad.clone() for name, p in sae.named_parameters()})
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, msg=name)
