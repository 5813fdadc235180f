from __future__ import annotations

import pytest
import torch

from hf_sae.models import ConfigError, TopAFAConfig, TopAFASAE, TopKConfig, TopKSAE, TrainingState
from hf_sae.models import modeling_top_afa as module
from hf_sae.models.modeling_top_afa import energy_mask


def build(**changes) -> TopAFASAE:
    torch.manual_seed(0)
    sae = TopAFASAE(TopAFAConfig(**{"d_in": 6, "d_sae": 10, "hook_in": "resid_post.0"} | changes))
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.2)
        sae.decoder.bias.normal_(std=0.2)
    return sae


def test_published_example() -> None:
    """The matrices of the authors' tutorial, which gives k = 2 for each row, and the latents that are left."""
    latents = torch.tensor([[5.0, 4.0, 3.0], [1.0, 1.0, 1.0], [1.0, 10.0, 2.0]])
    decoder = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    mask = energy_mask(latents * decoder.norm(dim=-1), (latents @ decoder).norm(dim=-1))
    assert mask.sum(-1).tolist() == [2, 2, 2]
    assert (latents * mask).tolist() == [[0.0, 4.0, 3.0], [0.0, 1.0, 1.0], [0.0, 10.0, 2.0]]


@pytest.mark.parametrize("at_once", [1 << 24, 16])
def test_number_of_latents_by_brute_force(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", at_once)
    sae, x = build(), torch.randn(60, 6)
    with torch.no_grad():
        sae.decoder.weight.mul_(0.5 + torch.rand(10, 1))  # lengths count
    sae.requires_grad_(False)
    code = sae.encode(x)
    centred = x - sae.decoder.bias
    latents = torch.relu(centred @ sae.encoder.weight.T + sae.encoder.bias)
    lengths = latents * sae.decoder.weight.norm(dim=-1)
    for row in range(60):
        order = sorted(range(10), key=lambda i: -float(lengths[row, i]))
        gaps = [
            abs(sum(float(lengths[row, i]) ** 2 for i in order[:k]) ** 0.5 - float(centred[row].norm()))
            for k in range(1, 10)
        ]
        kept = order[: gaps.index(min(gaps)) + 1]
        expected = torch.zeros(10)
        expected[kept] = latents[row, kept]
        assert torch.equal(code[row], expected)
    assert len(set((code != 0).sum(-1).tolist())) > 2


def test_tokens_do_not_depend_on_each_other() -> None:
    sae, x = build(), torch.randn(20, 6)
    together = sae.encode(x)
    torch.testing.assert_close(torch.cat([sae.encode(row) for row in x.split(1)]), together)


def test_penalty_is_the_squared_difference_of_lengths() -> None:
    sae, x = build(afa_coefficient=0.25, input_norm="scalar", input_scale=2.0), torch.randn(30, 6)
    output = sae(x, state=TrainingState(normaliser=5.0))
    gap = (sae.encode(x).norm(dim=-1) - (2 * x).norm(dim=-1)) / 2  # in the units of x
    torch.testing.assert_close(output.losses["afa"], 0.25 * 6 * gap.square().mean() / 5.0)


def test_penalty_is_that_of_the_paper_on_inputs_of_unit_variance() -> None:
    """There the normaliser is d, and both terms are theirs: the mean squared error and λ (‖z‖ - ‖x‖)²."""
    sae, x = build(), torch.randn(30, 6)
    output = sae(x, state=TrainingState(normaliser=6.0))
    mean_squared = (x - output.reconstruction).square().mean()
    gap = (sae.encode(x).norm(dim=-1) - x.norm(dim=-1)).square().mean()
    torch.testing.assert_close(output.loss, mean_squared + gap / 32)


def test_a_token_without_latents_has_finite_gradients() -> None:
    sae = build()
    with torch.no_grad():
        sae.encoder.bias.fill_(-100.0)
    output = sae(torch.randn(5, 6), state=TrainingState())
    output.loss.backward()
    assert output.latents.count_nonzero() == 0
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters())


def test_auxk_reaches_dead_latents_only() -> None:
    sae, x = build(), torch.randn(50, 6)
    since = torch.zeros(10, dtype=torch.long)
    since[[2, 7]] = 1000
    state = TrainingState(normaliser=2.0, dead_after_tokens=100, tokens_since_fired=since)
    sae(x, state=state).losses["auxk"].backward()
    live = [i for i in range(10) if i not in (2, 7)]
    for gradient in (sae.encoder.weight.grad, sae.decoder.weight.grad):
        assert gradient[live].abs().max() == 0
        assert (gradient[[2, 7]].abs().amax(1) > 0).all()


def test_length_of_codes_lies_within_the_bound_of_the_theorem() -> None:
    """For unit rows with products of at most ε: ‖z‖² is between ‖x‖² / (1 ± ε (n - 1))."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(6, 4000, dtype=torch.double), dim=-1)
    epsilon = (rows @ rows.T - torch.eye(6, dtype=torch.double)).abs().max()
    codes = torch.rand(200, 6, dtype=torch.double)
    dense, code = (codes @ rows).square().sum(-1), codes.square().sum(-1)
    assert 0 < epsilon * 5 < 1
    assert (code >= dense / (1 + epsilon * 5)).all()
    assert (code <= dense / (1 - epsilon * 5)).all()


def test_recovers_how_many_features_are_active_where_they_are_orthogonal() -> None:
    """One to six of 24 orthonormal features: exact, with as many latents as there are; three latents leave an error."""
    torch.manual_seed(0)
    rows = torch.linalg.qr(torch.randn(24, 24))[0]
    active = torch.randint(1, 7, (500, 1))
    ranks = torch.rand(500, 24).argsort(-1).argsort(-1)
    codes = (0.5 + torch.rand(500, 24)) * (ranks < active)
    x = codes @ rows
    sae = TopAFASAE(TopAFAConfig(d_in=24, d_sae=24, hook_in="resid_post.0"))
    topk = TopKSAE(TopKConfig(d_in=24, d_sae=24, k=3, hook_in="resid_post.0"))
    with torch.no_grad():
        for model in (sae, topk):
            model.decoder.weight.copy_(rows)
            model.encoder.weight.copy_(rows)
        assert torch.equal((sae.encode(x) > 1e-3).sum(-1, keepdim=True), active)
        assert sae(x, target=x).fvu < 1e-6
        assert topk(x, target=x).fvu > 0.1


@pytest.mark.parametrize(
    ("changes", "match"), [({"afa_coefficient": -1}, "afa_coefficient"), ({"k_aux": 11}, "k_aux"), ({"k": 3}, "'k'")]
)
def test_bad_configs(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(**changes)
