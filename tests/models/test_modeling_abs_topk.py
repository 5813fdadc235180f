from __future__ import annotations

import itertools

import pytest
import torch

from hf_sae.models import AbsTopKConfig, AbsTopKSAE, ConfigError, TopKConfig, TopKSAE, TrainingState
from hf_sae.models.sparse_ops import select_pre_activations
from hf_sae.training.optimizer import RowAdam


def build(**changes) -> AbsTopKSAE:
    torch.manual_seed(0)
    sae = AbsTopKSAE(AbsTopKConfig(**{"d_in": 6, "d_sae": 10, "k": 3, "hook_in": "resid_post.0"} | changes))
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.2)
        sae.decoder.bias.normal_(std=0.2)
    return sae


def test_is_the_proximal_step_by_brute_force() -> None:
    """`argmin ‖z - u‖²` over all z with at most k entries: over every support the best z is u there."""
    sae, x = build(d_sae=7).double(), torch.randn(25, 6, dtype=torch.double)
    u = (x - sae.decoder.bias) @ sae.encoder.weight.T + sae.encoder.bias
    supports = list(itertools.combinations(range(7), 3))
    masks = torch.zeros(len(supports), 7, dtype=torch.double)
    for row, support in enumerate(supports):
        masks[row, list(support)] = 1
    errors = (u.unsqueeze(1) * (1 - masks)).square().sum(-1)
    expected = u * masks[errors.argmin(1)]
    assert (expected < 0).any()
    torch.testing.assert_close(sae.encode(x), expected)  # with gradients
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), expected)
        torch.testing.assert_close(sae.activate(u), expected)


def test_is_topk_on_both_signs_of_every_row() -> None:
    """AbsTopK(W, k) == TopK([W; -W], k): of u and -u one is positive, and is |u|."""
    sae = build().double()
    both = TopKSAE(TopKConfig(d_in=6, d_sae=20, k=3, hook_in="resid_post.0")).double()
    with torch.no_grad():
        both.encoder.weight.copy_(torch.cat([sae.encoder.weight, -sae.encoder.weight]))
        both.encoder.bias.copy_(torch.cat([sae.encoder.bias, -sae.encoder.bias]))
        both.decoder.weight.copy_(torch.cat([sae.decoder.weight, -sae.decoder.weight]))
        both.decoder.bias.copy_(sae.decoder.bias)
    x = torch.randn(50, 6, dtype=torch.double)
    for model in (sae, both):  # with gradients, which takes another way
        model(x, target=x).loss.backward()
    torch.testing.assert_close(sae(x).reconstruction, both(x).reconstruction, atol=1e-12, rtol=0)
    positive, negative = both.encode(x).chunk(2, dim=-1)
    torch.testing.assert_close(sae.encode(x), positive - negative, atol=1e-12, rtol=0)
    for mine, its in ((sae.encoder, both.encoder), (sae.decoder, both.decoder)):
        up, down = its.weight.grad.chunk(2)
        torch.testing.assert_close(mine.weight.grad, up - down, atol=1e-12, rtol=0)


def test_a_negative_latent_fires_and_is_counted() -> None:
    sae = build()
    code = sae.encode_sparse(torch.randn(40, 6))
    assert (code.values < 0).any()
    assert code.l0() == 3
    assert code.counts().tolist() == [3] * 40


def test_fast_path_is_the_plain_one() -> None:
    sae, x = build(d_sae=64, k=5), torch.randn(30, 6)
    values, indices, _ = select_pre_activations(x, (sae.encoder.weight, sae.encoder.bias), None, 5, score=torch.abs)
    pre = x @ sae.encoder.weight.T + sae.encoder.bias
    chosen = pre.abs().topk(5).indices
    torch.testing.assert_close(values.sort().values, pre.gather(-1, chosen).sort().values)
    assert torch.equal(indices.sort().values, chosen.sort().values)


def test_auxk_ranks_by_magnitude_and_keeps_signs() -> None:
    dead, x, sae = [1, 4, 8], torch.randn(30, 6), build(k_aux=2)
    since = torch.zeros(10, dtype=torch.long)
    since[dead] = 1000
    state = TrainingState(normaliser=2.0, dead_after_tokens=100, tokens_since_fired=since)
    output = sae(x, state=state)
    with torch.no_grad():
        residual = x - output.reconstruction
        pre = (x - sae.decoder.bias) @ sae.encoder.weight.T + sae.encoder.bias
        expected = 0.0
        for row in range(30):
            best = sorted(dead, key=lambda i: -pre[row, i].abs())[:2]
            guess = sum(pre[row, i] * sae.decoder.weight[i] for i in best)
            expected += float((residual[row] - guess).square().sum())
    torch.testing.assert_close(output.losses["auxk"].item(), expected / 30 / 2.0 / 32, rtol=1e-5, atol=0)
    output.losses["auxk"].backward()
    live = [i for i in range(10) if i not in dead]
    for gradient in (sae.encoder.weight.grad, sae.decoder.weight.grad):
        assert gradient[live].abs().max() == 0
        assert (gradient[dead].abs().amax(1) > 0).all()


def trained_fvu(sae, x: torch.Tensor, steps: int = 200) -> float:
    state = TrainingState(total_steps=steps)
    sae.initialize_from(x, x, state)
    optimizer = RowAdam(sae.parameters(), unit_rows=[sae.decoder.weight], lr=1e-2)
    for step in range(steps):
        state.step = step
        sae.before_step(state)
        rows = x[torch.randint(len(x), (256,))]
        sae(rows, state=state).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(sae.eval()(x, target=x).fvu)


def test_signed_features_need_half_as_many_latents() -> None:
    """32 axes, two of them active with either sign: TopK with as many latents has room for half of the directions."""
    torch.manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(32, 16), dim=-1)
    codes = torch.zeros(4096, 32)
    codes.scatter_(1, torch.rand(4096, 32).topk(2).indices, (0.5 + torch.rand(4096, 2)) * torch.randn(4096, 2).sign())
    x = codes @ axes
    sizes = {"d_in": 16, "d_sae": 32, "k": 2, "hook_in": "resid_post.0"}
    signed = trained_fvu(AbsTopKSAE(AbsTopKConfig(**sizes)), x)
    rectified = trained_fvu(TopKSAE(TopKConfig(**sizes)), x)
    assert signed < rectified - 0.13, (signed, rectified)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"k": 11}, "d_sae=10"), ({"k_start": 2}, "annealing"), ({"k_aux": 0}, "k_aux=0"), ({"theta": 1}, "no field")],
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)
