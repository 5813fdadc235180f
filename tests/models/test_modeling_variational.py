"""The variational baseline: TopK without noise, worse with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sae.models import ConfigError, TopKConfig, TopKSAE, TrainingState, VariationalConfig, VariationalSAE
from hf_sae.models.modeling_variational import kl_divergence
from tests.models.fitting import fitted


def small(**changes) -> VariationalSAE:
    torch.manual_seed(0)
    return VariationalSAE(VariationalConfig(**{"d_in": 6, "d_sae": 24, "k": 3} | changes)).double()


def test_without_noise_and_penalty_it_is_topk() -> None:
    sae, x = small(sigma=0.0, kl_coefficient=0.0), torch.randn(50, 6, dtype=torch.double)
    topk = TopKSAE(TopKConfig(d_in=6, d_sae=24, k=3)).double()
    topk.load_state_dict(sae.state_dict())
    losses = [model(x, state=TrainingState(normaliser=3.0)).loss for model in (sae, topk)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-12, rtol=0)
    for loss in losses:
        loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, topk.get_parameter(name).grad, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("learns_sigma", [False, True])
def test_inference_is_topk_of_the_mean_and_training_samples(learns_sigma: bool) -> None:
    sae, x = small(sigma=0.5, learns_sigma=learns_sigma), torch.randn(20_000, 6, dtype=torch.double)
    topk = TopKSAE(TopKConfig(d_in=6, d_sae=24, k=3)).double()
    topk.load_state_dict(sae.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(sae.eval().encode(x), topk.encode(x))
        latents, mean = sae.latents_of(x, None, TrainingState())
        first = x[:1].expand(20_000, 6)
        every = VariationalConfig(d_in=6, d_sae=24, k=24, sigma=0.5, learns_sigma=learns_sigma)
        wide = VariationalSAE(every).double()
        wide.load_state_dict(sae.state_dict())
        samples, mean = wide.latents_of(first, None, TrainingState())
    assert latents.indices.shape == (20_000, 3)
    # rectified Gaussians: the share that fires and its mean are known
    z, mu = samples.to_dense(), mean[0]
    normal = torch.distributions.Normal(0.0, 1.0)
    share = normal.cdf(mu / 0.5)
    torch.testing.assert_close((z > 0).double().mean(0), share, atol=0.015, rtol=0)
    expected = mu * share + 0.5 * normal.log_prob(mu / 0.5).exp()
    torch.testing.assert_close(z.mean(0), expected, atol=0.015, rtol=0)


def test_the_divergence_is_that_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 5, generator=generator, dtype=torch.double)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    samples = mean + (log_variance / 2).exp() * torch.randn(400_000, 5, generator=generator, dtype=torch.double)
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    estimate = (posterior.log_prob(samples) - prior.log_prob(samples)).sum(-1).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), estimate, atol=0.02, rtol=0)
    zero = torch.zeros_like(mean)
    assert kl_divergence(zero, zero) == 0
    # a fixed deviation leaves what depends on the mean
    torch.testing.assert_close(kl_divergence(mean), kl_divergence(mean, zero))


@pytest.mark.parametrize("learns_sigma", [False, True])
def test_the_penalty_warms_up_in_units_of_the_squared_error(learns_sigma: bool) -> None:
    sae = small(kl_coefficient=0.3, kl_warmup_share=0.5, sigma=0.5, learns_sigma=learns_sigma)
    x = torch.randn(50, 6, dtype=torch.double)
    squares = sae.pre_activations(x).square().sum(-1).mean() / 2
    rest = 24 * (0.25 - 1 - math.log(0.25)) / 2 if learns_sigma else 0.0
    for step, risen in ((0, 0.0), (2, 0.4), (5, 1.0), (9, 1.0)):
        state = TrainingState(step=step, total_steps=10, normaliser=7.0)
        expected = 0.3 * risen * (squares + rest) / 7
        torch.testing.assert_close(sae(x, state=state).losses["kl"], expected, atol=1e-5, rtol=1e-5)


def test_noise_has_gradients_of_the_sampled_loss() -> None:
    """Finite differences with the noise held fixed, for the mean's and the deviation's maps."""
    sae, x = small(sigma=0.5, learns_sigma=True, kl_coefficient=0.2), torch.randn(50, 6, dtype=torch.double)
    state = TrainingState(step=1, normaliser=7.0)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return sae(x, state=state).loss

    loss().backward()
    for name, parameter in sae.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = loss()
            parameter -= 2e-5 * direction
            slope = (above - loss()) / 2e-5
            parameter += 1e-5 * direction
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, atol=1e-4, rtol=1e-3, msg=name)


def test_a_learnt_deviation_is_in_the_checkpoint(tmp_path) -> None:
    sae = small(learns_sigma=True, sigma=0.5)
    torch.testing.assert_close(sae.log_variance.bias, torch.full((24,), 2 * math.log(0.5), dtype=torch.double))
    with torch.no_grad():
        sae.log_variance.weight.normal_()
    sae.save_pretrained(tmp_path)
    assert torch.equal(VariationalSAE.from_pretrained(tmp_path).log_variance.weight, sae.log_variance.weight)


def test_bad_values_are_refused() -> None:
    for changes, said in (
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"sigma": 0.0, "learns_sigma": True}, "above 0"),
        ({"kl_coefficient": math.inf}, "kl_coefficient"),
        ({"kl_warmup_share": 2.0}, "kl_warmup_share"),
        ({"k": 25}, "k=25"),
    ):
        with pytest.raises(ConfigError, match=said):
            VariationalConfig(**{"d_in": 6, "d_sae": 24, "k": 3} | changes)


def two_of_32(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    atoms = F.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(5)), dim=-1)
    chosen = torch.rand(n, 32, generator=generator).topk(2).indices
    sizes = 0.5 + torch.rand(n, 2, 1, generator=generator)
    x = (sizes * atoms[chosen]).sum(1)
    return x, x


def test_it_loses_to_topk_and_the_more_the_larger_the_penalty() -> None:
    shared = {"d_in": 16, "d_sae": 32, "k": 2}
    _, topk = fitted(TopKConfig(**shared), two_of_32, steps=200, lr=1e-2)
    betas = (0.0, 0.05, 0.5)
    fvus = [fitted(VariationalConfig(**shared, kl_coefficient=b), two_of_32, steps=200, lr=1e-2)[1] for b in betas]
    assert topk < 0.2 < fvus[0] < fvus[1] < fvus[2]
