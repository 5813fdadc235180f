"""RowAdam is Adam on the whole gradient, projected, and then unit rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_sae.models import TopKConfig, TopKSAE
from hf_sae.models.outputs import TrainingState
from hf_sae.models.row_gradients import RowGradient, SomeRows, Transposed
from hf_sae.training import optimizer as module
from hf_sae.training.optimizer import RowAdam


ROWS, WIDTH, TOKENS, K = 13, 6, 40, 4
OPTIONS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-9}


@pytest.fixture(autouse=True, params=[WIDTH * 8 * 3, 2**20], ids=["blocks of 3 rows", "one block"])
def block(request, monkeypatch):
    monkeypatch.setitem(module.BLOCK_BYTES, "cpu", request.param)


def weights() -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(F.normalize(torch.randn(ROWS, WIDTH, dtype=torch.float64), dim=-1))


def factors(step: int) -> tuple[list[RowGradient | SomeRows], Tensor]:
    """Two batches and three rows, as factors and in full."""
    generator = torch.Generator().manual_seed(step)
    full, found = torch.zeros(ROWS, WIDTH, dtype=torch.float64), []
    for _ in range(2):
        indices = torch.rand(TOKENS, ROWS - 1, generator=generator).topk(K).indices  # the last row never fires
        values = torch.randn(TOKENS, K, generator=generator, dtype=torch.float64)
        rows = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
        found.append(RowGradient(Transposed(indices, ROWS), values, rows))
        full += torch.zeros(TOKENS, ROWS, dtype=torch.float64).scatter(1, indices, values).T @ rows
    index, rows = torch.tensor([0, 5, 12]), torch.randn(3, WIDTH, generator=generator, dtype=torch.float64)
    full[index] += rows
    return [*found, SomeRows(index, rows)], full


def projected(grad: Tensor, weight: Tensor) -> Tensor:
    return grad - (grad * weight).sum(-1, keepdim=True) * weight


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dense", ["none", "too", "only"])
def test_equals_adam_on_the_whole_gradient(unit, fused, dense):
    ours, reference = weights(), weights()
    optimizer = RowAdam([ours], unit_rows=[ours] if unit else [], factored=[ours], fused=fused, **OPTIONS)
    adam = torch.optim.Adam([reference], **OPTIONS)
    for step in range(5):
        found, full = factors(step)
        if dense != "only":
            ours.row_gradients.extend(found)
        if dense != "none":
            ours.grad = full.clone()
            full = 2 * full if dense == "too" else full
        reference.grad = projected(full, reference.detach()) if unit else full
        optimizer.step()
        optimizer.zero_grad()
        adam.step()
        if unit:
            reference.data = F.normalize(reference.data, dim=-1)
        torch.testing.assert_close(ours, reference, atol=1e-12, rtol=0)
    for key in ("step", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[ours][key], adam.state[reference][key], atol=1e-12, rtol=1e-9)
    assert ours.grad is None
    assert ours.row_gradients == []


def test_norm_and_scale_are_those_of_clipping():
    ours, reference, bias = weights(), weights(), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = RowAdam([ours, bias], unit_rows=[ours], factored=[ours], **OPTIONS)
    found, full = factors(0)
    ours.row_gradients.extend(found)
    bias.grad = torch.ones(3, dtype=torch.float64)
    expected = torch.sqrt(projected(full, ours.detach()).square().sum() + 3)
    torch.testing.assert_close(optimizer.norm(), expected)
    optimizer.update(1 / expected)
    moment = optimizer.state[ours]["exp_avg"]
    torch.testing.assert_close(moment, 0.2 * projected(full, reference.detach()) / expected)


def test_materialize_writes_the_gradient_in_full():
    ours = weights()
    optimizer = RowAdam([ours], unit_rows=[ours], factored=[ours], **OPTIONS)
    found, full = factors(3)
    ours.row_gradients.extend(found)
    optimizer.materialize()
    torch.testing.assert_close(ours.grad, full)
    assert ours.row_gradients == []
    before = ours.grad.clone()
    optimizer.materialize()
    assert torch.equal(ours.grad, before)


def test_a_parameter_without_gradient_stays():
    ours, scalar = weights(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = RowAdam([ours, scalar], unit_rows=[ours], factored=[ours], **OPTIONS)
    before = ours.detach().clone()
    scalar.grad = torch.tensor(3.0, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(ours, before)
    assert float(scalar.detach()) == pytest.approx(2.0 - 0.05)  # Adam's first step is the learning rate


def test_a_model_gives_the_same_gradient_as_factors_and_in_full():
    torch.manual_seed(0)
    sae = TopKSAE(TopKConfig(d_in=6, d_sae=24, k=3, k_aux=2)).double().train()
    x = torch.randn(32, 6, dtype=torch.float64)
    since = torch.zeros(24, dtype=torch.long)
    since[[2, 7, 11]] = 100
    state = TrainingState(normaliser=2.0, tokens_since_fired=since, dead_after_tokens=10)
    sae(x, state=state).loss.backward()
    full = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    optimizer = RowAdam(sae.parameters(), factored=[sae.encoder.weight, sae.decoder.weight])
    sae(x, state=state).loss.backward()
    assert sae.encoder.weight.grad is None
    assert sae.decoder.weight.grad is None
    optimizer.materialize()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, full[name], atol=1e-12, rtol=0)
    assert full["encoder.weight"][[2, 7, 11]].abs().sum() > 0  # AuxK reaches the encoder
