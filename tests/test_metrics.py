"""Metrics against closed forms and brute force."""

from __future__ import annotations

import pytest
import torch

from hf_sae import metrics


def centred(tokens: int, d: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(seed))
    return x - x.double().mean(0).float()


def test_perfect_reconstruction_is_exact():
    x = centred(50, 8) + 3
    out = metrics.reconstruction_metrics(x, x)
    assert {key: round(value.item(), 12) for key, value in out.items()} == {
        "fvu": 0,
        "explained_variance": 1,
        "mse": 0,
        "cosine": 1,
        "relative_bias": 1,
    }


def test_mean_explains_nothing():
    x = centred(50, 8) + 3
    mean = x.double().mean(0).expand_as(x)
    assert metrics.fvu(mean, x).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.8, 1.5])
def test_scaled_reconstruction_of_zero_mean_data(a):
    x = centred(200, 8).double()
    out = metrics.reconstruction_metrics(a * x, x)
    assert out["explained_variance"].item() == pytest.approx(1 - (1 - a) ** 2, abs=1e-9)
    assert out["relative_bias"].item() == pytest.approx(a, abs=1e-9)
    assert out["cosine"].item() == pytest.approx(1, abs=1e-9)
    assert out["mse"].item() == pytest.approx((1 - a) ** 2 * x.square().mean().item(), abs=1e-9)


def test_noise_costs_its_variance():
    d, tokens, sigma = 16, 40_000, 0.3
    x = centred(tokens, d) * torch.linspace(0.5, 2, d)
    noisy = x + sigma * torch.randn(tokens, d, generator=torch.Generator().manual_seed(1))
    expected = sigma**2 * d / x.double().var(0, correction=0).sum().item()
    assert metrics.fvu(noisy, x).item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (100, 0), (1, 1000), (100, 1000)])
def test_fvu_survives_scale_and_offset(scale, shift):
    x = centred(500, 8)
    error = 0.1 * centred(500, 8, seed=1)
    reference = metrics.fvu(x + error, x).item()
    moved = (scale * x + shift).float()
    assert metrics.fvu((moved.double() + scale * error).float(), moved).item() == pytest.approx(reference, rel=2e-3)


def test_cosine_of_a_zero_vector_is_zero_not_nan():
    x = centred(10, 4)
    assert metrics.reconstruction_metrics(torch.zeros_like(x), x)["cosine"].item() == 0


def test_losses_equal_brute_force_in_any_chunking(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 3, 7, 11, generator=generator)
    ids = torch.randint(11, (3, 7), generator=generator)
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    loss = -log_p[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1]
    for budget in (11, 50, 1 << 20):
        monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", budget)
        torch.testing.assert_close(metrics.next_token_losses(logits, ids).double(), loss, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            metrics.next_token_divergence(logits, other).double(), divergence, atol=1e-5, rtol=0
        )


def test_divergence_with_an_impossible_entry_and_from_itself():
    logits = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    logits[..., 2] = float("-inf")
    assert metrics.next_token_divergence(logits, logits.clone()).eq(0).all()


def test_losses_are_computed_in_fp32():
    logits = torch.tensor([[[88.0, 90.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    expected = torch.log1p(torch.exp(torch.tensor(2.0)))
    loss = metrics.next_token_losses(logits, torch.tensor([[1, 0]]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.view(1, 1), atol=1e-5, rtol=0)


def test_recovered_loss_and_language_metrics():
    sums = {"predictions": 10.0, "ce_clean": 20.0, "ce_sae": 30.0, "ce_zero": 100.0, "ce_mean": 60.0, "kl": 5.0}
    base = dict.fromkeys(("tokens", "dimensions", "error", "variance", "cosine", "energy", "overlap", "l0"), 1.0)
    out = metrics.summarise({key: torch.tensor(value) for key, value in {**base, **sums}.items()})
    expected = {"ce_clean": 2, "ce_sae": 3, "ce_zero": 10, "ce_mean": 6, "kl": 0.5, "delta_ce": 1}
    expected |= {"ce_recovered": 7 / 8, "ce_recovered_mean": 3 / 4}
    assert {key: out[key].item() for key in expected} == pytest.approx(expected)
    assert list(out) == [key for key in metrics.METRIC_KEYS if key not in {"dead_fraction", "density"}]


def test_counts_on_a_hand_made_code():
    latents = torch.tensor([[0, 2.0, 0, -1.0], [0, 1.0, 0, 0]])
    firing = (latents != 0).sum(0)
    assert metrics.l0(latents).item() == 1.5
    assert metrics.density(firing, 2).tolist() == [0, 1, 0, 0.5]
    assert metrics.dead_fraction(firing) == 0.5
