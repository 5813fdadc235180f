from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import (
    SAE,
    AutoSAE,
    ConfigError,
    MatchingPursuitConfig,
    MatchingPursuitSAE,
    TopKConfig,
    TopKSAE,
    TrainingState,
    pursuit,
)
from hf_sae.models.pursuit import matching_pursuit
from hf_sae.training.optimizer import RowAdam


def build(**changes) -> MatchingPursuitSAE:
    torch.manual_seed(0)
    config = {"d_in": 6, "d_sae": 16, "k": 4, "hook_in": "resid_post.0"}
    sae = MatchingPursuitSAE(MatchingPursuitConfig(**config | changes)).double().eval()
    with torch.no_grad():
        sae.decoder.bias.normal_()
        sae.decoder.weight.copy_(F.normalize(sae.decoder.weight, dim=-1))  # to the precision of float64
    return sae


def by_hand(sae: MatchingPursuitSAE, x: Tensor, k: int, signed: bool = False) -> Tensor:
    """The pursuit with autograd's own gradients, one token after the other."""
    rows = []
    for token in x:
        residual, latents = token - sae.decoder.bias, torch.zeros(sae.config.d_sae, dtype=x.dtype)
        for _ in range(k):
            products = sae.decoder.weight @ residual
            best = int((products.abs() if signed else products).argmax())
            amount = products[best] if signed else torch.relu(products[best])
            latents = latents + amount * F.one_hot(torch.tensor(best), len(latents))
            residual = residual - amount * sae.decoder.weight[best]
        rows.append(latents)
    return torch.stack(rows)


def test_orthonormal_atoms_give_top_k() -> None:
    sae = build(d_in=8, d_sae=8, k=3)
    topk = TopKSAE(TopKConfig(d_in=8, d_sae=8, k=3, hook_in="resid_post.0")).double().eval()
    with torch.no_grad():
        sae.decoder.weight.copy_(torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q)
        topk.encoder.weight.copy_(sae.decoder.weight)
        topk.decoder.load_state_dict(sae.decoder.state_dict())
    x = torch.randn(50, 8, dtype=torch.float64)
    torch.testing.assert_close(sae.encode(x), topk.encode(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(sae(x).reconstruction, topk(x).reconstruction, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("table", [True, False])
def test_code_and_gradients_are_those_of_the_plain_loop(
    rectify: bool, table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more steps than dimensions, so that atoms are picked again."""
    if not table:
        monkeypatch.setattr(pursuit, "GRAM_BYTES", 0)
    monkeypatch.setattr(pursuit, "CHUNK_BYTES", 10 * 2 * 16 * 8)
    sae = build(k=9, rectify=rectify)
    x, state = torch.randn(30, 6, dtype=torch.float64, requires_grad=True), TrainingState(normaliser=1.0)
    output = sae(x, state=state)
    output.loss.backward()
    fast = [sae.decoder.weight.grad, sae.decoder.bias.grad, x.grad]
    sae.zero_grad()
    x.grad = None
    expected = by_hand(sae, x, 9, not rectify)
    assert (expected != 0).sum(-1).min() < 9, "no atom was picked again: the test shows less than it should"
    torch.testing.assert_close(output.latents.to_dense(), expected)
    (x - expected @ sae.decoder.weight - sae.decoder.bias).square().sum(-1).mean().backward()
    for ours, theirs in zip(fast, [sae.decoder.weight.grad, sae.decoder.bias.grad, x.grad], strict=True):
        torch.testing.assert_close(ours, theirs)
    for row in output.latents.indices.tolist():
        assert len(set(row)) == len(row)


def test_each_pick_takes_its_square_off_the_error() -> None:
    sae, x = build(), torch.randn(40, 6, dtype=torch.float64)
    target = x - sae.decoder.bias.detach()
    amounts, picks = matching_pursuit(target, sae.decoder.weight.detach(), 7)
    residual = target
    for amount, pick in zip(amounts.T, picks.T, strict=True):
        after = residual - amount.unsqueeze(1) * sae.decoder.weight.detach()[pick]
        left = residual.square().sum(-1) - amount**2
        torch.testing.assert_close(after.square().sum(-1), left, atol=1e-13, rtol=0)
        residual = after


def test_more_steps_at_inference_and_k_in_training() -> None:
    sae, x = build(k=2, k_inference=6), torch.randn(30, 6, dtype=torch.float64)
    assert sae.encode_sparse(x).counts().max() > 2
    torch.testing.assert_close(sae.encode(x), by_hand(sae, x, 6))
    torch.testing.assert_close(sae(x, state=TrainingState()).latents.to_dense(), by_hand(sae, x, 2))
    errors = []
    for k in range(1, 8):
        sae.config.k_inference = k
        errors.append((x - sae(x).reconstruction).norm(dim=-1))
    assert (torch.stack(errors).diff(dim=0) <= 1e-12).all()


def test_tolerance_ends_a_token_by_itself() -> None:
    sae, x = build(k=9), torch.randn(50, 6, dtype=torch.float64)
    full = torch.stack(
        [(x - by_hand(sae, x, k) @ sae.decoder.weight - sae.decoder.bias).norm(dim=-1) for k in range(10)]
    )
    sae.config.tolerance = 0.3
    left = (x - sae(x).reconstruction).norm(dim=-1)
    enough = full <= 0.3 * full[0]
    first = torch.where(enough.any(0), enough.int().argmax(0), 9)
    assert first.min() < first.max()
    torch.testing.assert_close(left, full.gather(0, first.unsqueeze(0)).squeeze(0))


def test_nothing_to_explain() -> None:
    sae = build()
    x = sae.decoder.bias.detach().expand(3, 6)
    output = sae(x, state=TrainingState())
    assert output.code.counts().tolist() == [0, 0, 0]
    output.loss.backward()
    assert torch.isfinite(sae.decoder.weight.grad).all()
    with torch.no_grad():  # all atoms on one side, the token on the other
        sae.decoder.weight.copy_(sae.decoder.weight.abs())
    assert sae.encode_sparse(x - 1).counts().tolist() == [0, 0, 0]


def test_what_is_new_comes_back(tmp_path: Path) -> None:
    sae = build(k_inference=7, tolerance=0.2, rectify=False)
    sae.save_pretrained(tmp_path)
    loaded, x = AutoSAE.from_pretrained(tmp_path), torch.randn(5, 6, dtype=torch.float64)
    assert (loaded.config.k_inference, loaded.config.tolerance, loaded.config.rectify) == (7, 0.2, False)
    assert sorted(loaded.state_dict()) == ["decoder.bias", "decoder.weight"]
    assert torch.equal(loaded.double().encode(x), sae.encode(x))
    assert (sae.encode(x) < 0).any()
    assert torch.equal(loaded.W_enc, loaded.W_dec.T)
    assert not loaded.b_enc.any()


@pytest.mark.parametrize(
    "change",
    [{"k": 17}, {"k_inference": 0}, {"tolerance": 1.0}, {"pre_bias": False}, {"hook_out": "mlp_out.0"}],
    ids=str,
)
def test_bad_config(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        build(**change)


def branches(n: int, generator: torch.Generator) -> Tensor:
    """One of 4 roots on each token and, on 40 % of them, one of its 4 children, which are orthogonal to it."""
    fixed = torch.Generator().manual_seed(100)
    roots = F.normalize(torch.randn(4, 20, generator=fixed), dim=-1)
    kids = torch.randn(4, 4, 20, generator=fixed)
    kids = F.normalize(kids - (kids * roots[:, None]).sum(-1, keepdim=True) * roots[:, None], dim=-1)
    root, kid = torch.randint(4, (n,), generator=generator), torch.randint(4, (n,), generator=generator)
    return roots[root] + (torch.rand(n, 1, generator=generator) < 0.4) * kids[root, kid]


def trained(sae: SAE, steps: int = 180) -> float:
    """The share of variance that is left over after a short training on tokens of a tree."""
    generator, state = torch.Generator().manual_seed(0), TrainingState(total_steps=steps)
    x = branches(4096, generator)
    sae.initialize_from(x, x, state)
    optimizer = RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight], lr=1.0)
    for state.step in range(steps):
        optimizer.param_groups[0]["lr"] = 1.5e-2 * min(1, 5 * (1 - state.step / steps))
        sae(branches(128, generator), state=state).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    x = branches(2000, generator)
    with torch.no_grad():
        left = x - sae.eval()(x).reconstruction
    return float(left.square().sum() / (x - x.mean(0)).square().sum())


def test_explains_a_hierarchy_with_less_error_than_top_k() -> None:
    """Of the error only: that fewer errors mean better latents is not claimed."""
    config = {"d_in": 20, "d_sae": 20, "k": 2, "hook_in": "resid_post.0"}
    torch.manual_seed(0)
    pursuit_left = trained(MatchingPursuitSAE(MatchingPursuitConfig(**config)))
    torch.manual_seed(0)
    assert pursuit_left < 0.5 * trained(TopKSAE(TopKConfig(**config)))
