from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_sae.models import ConfigError, JumpReLUConfig, JumpReLUSAE, StandardConfig, StandardSAE, TrainingState
from hf_sae.models.l0_penalties import PENALTIES, step
from hf_sae.models.modeling_jumprelu import _JumpReLU, rarest


def build(**changes) -> JumpReLUSAE:
    torch.manual_seed(0)
    return JumpReLUSAE(JumpReLUConfig(**{"d_in": 6, "d_sae": 10, "target_l0": 3, "hook_in": "resid_post.0"} | changes))


def test_threshold_zero_is_relu() -> None:
    sae, relu = build(), StandardSAE(StandardConfig(d_in=6, d_sae=10, hook_in="resid_post.0"))
    with torch.no_grad():
        sae.threshold.zero_()
    relu.load_state_dict({k: v for k, v in sae.state_dict().items() if k != "threshold"})
    x = torch.randn(20, 6)
    assert torch.equal(sae(x).reconstruction, relu(x).reconstruction)


def test_straight_through_gradient_is_that_of_the_expected_loss() -> None:
    """`d/dθ E[(z - t)² + λ 1[u > θ]]` over Gaussian u, by finite differences of the exact expectation."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2_000_000, 1, generator=generator, dtype=torch.float64)
    target, strength, theta, epsilon = 0.9 * u + 0.3, 0.4, 0.6, 0.05

    def expected(threshold: float) -> float:
        z = u * (u > threshold)
        return float(((z - target).square() + strength * (u > threshold)).mean())

    threshold = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    loss = (_JumpReLU.apply(u, threshold, epsilon) - target).square() + strength * step(u, threshold, epsilon)
    loss.mean().backward()
    finite = (expected(theta + 0.01) - expected(theta - 0.01)) / 0.02
    torch.testing.assert_close(threshold.grad.item(), finite, rtol=0.05, atol=0)


def test_whole_kernel_counts() -> None:
    """Pre-activations just below the threshold pull it as much as those just above."""
    pre, threshold = torch.tensor([[0.98], [1.02], [1.2], [0.8]]), torch.tensor([1.0], requires_grad=True)
    step(pre, threshold, 0.1).sum().backward()
    torch.testing.assert_close(threshold.grad, torch.tensor([-2 / 0.1]))
    threshold.grad = None
    _JumpReLU.apply(pre, threshold, 0.1).sum().backward()
    torch.testing.assert_close(threshold.grad, torch.tensor([-2 * 1.0 / 0.1]))


def test_initialisation_starts_at_the_target() -> None:
    torch.manual_seed(0)
    sae = build(d_in=16, d_sae=64, target_l0=5, input_norm="scalar")
    x, state = 30 + 50 * torch.randn(4096, 16), TrainingState()
    sae.initialize_from(x, x, state)
    assert abs(float(sae.eval().encode_sparse(x).l0()) - 5) < 0.5
    assert sae.encode_sparse(x).firing_counts().min() > 0


@pytest.mark.parametrize(("n", "firing"), [(256, 77), (2, 1)])
def test_no_token_of_the_sample_lies_on_a_threshold(n: int, firing: int) -> None:
    """Where one does, rounding decides whether it fires: which kernel computes the product, and in how many rows."""
    sae = build().double()
    x = torch.randn(n, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    above = sae.pre_activations(x) - rarest(sae, x, 3.0)
    assert ((above > 0).sum(0) == firing).all()
    assert above.abs().min() > 1e-9


def test_dead_latents_are_pulled_towards_firing() -> None:
    sae, x = build(dead_coefficient=1.0), torch.randn(40, 6)
    with torch.no_grad():
        sae.threshold.fill_(0.1)
        sae.threshold[3] = 50.0
    since = torch.zeros(10, dtype=torch.long)
    since[3] = 1000
    state = TrainingState(dead_after_tokens=10, tokens_since_fired=since)
    sae(x, state=state).losses["dead"].backward()
    assert sae.threshold.grad[3] > 0
    assert sae.threshold.grad.abs().sum() == sae.threshold.grad[3].abs()


@pytest.mark.parametrize("revive", [True, False])
def test_dead_latents_fire_again(revive: bool) -> None:
    """A threshold out of reach comes down to what the batch reached; those of the living do as without it."""
    sae, x = build(revive_dead=revive, target_l0=None), torch.randn(40, 6)
    with torch.no_grad():
        sae.threshold.fill_(0.1)
        sae.threshold[[3, 4]] = 50.0
        sae.encoder.bias[4] = -100.0
    since = torch.zeros(10, dtype=torch.long)
    since[[3, 4]] = 1000
    state = TrainingState(dead_after_tokens=10, tokens_since_fired=since)
    sae.after_step(state, sae(x, state=state))
    largest = sae.pre_activations(x).amax(0)[3]
    expected = torch.full((10,), 0.1)
    expected[[3, 4]] = torch.stack([largest, torch.zeros(())]) if revive else 50.0  # never below 0
    torch.testing.assert_close(sae.threshold.detach(), expected)


def test_threshold_never_falls_below_zero() -> None:
    sae = build()
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
    sae.after_step(TrainingState(l0=3.0), sae(torch.randn(3, 6)))
    assert sae.threshold.min() == 0


def test_controller_raises_the_penalty_while_l0_is_too_high() -> None:
    sae, output = build(), None
    strengths = []
    for l0 in (30.0, 0.3):
        state = TrainingState(l0=l0)
        for _ in range(50):
            sae.after_step(state, output)
        strengths.append(state.values["l0_coefficient"] / sae.config.l0_coefficient)
    assert strengths[0] > 2
    assert strengths[1] < 0.5


def estimate_and_difference(
    penalty: Callable[[Tensor, Tensor, float], Tensor], u: Tensor, theta: float
) -> list[float]:
    """The kernel's gradient for the threshold, and finite differences of the penalty itself."""
    threshold = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    penalty(u, threshold, 0.05).backward()
    with torch.no_grad():
        ends = [penalty(u, torch.tensor([theta + h], dtype=torch.float64), 0.05) for h in (0.01, -0.01)]
    return [threshold.grad.item(), float(ends[0] - ends[1]) / 0.02]


@pytest.mark.parametrize("sparsity", ["step", "tanh", "quadratic"])
def test_each_penalty_has_the_gradient_of_its_expectation(sparsity: str) -> None:
    """Over Gaussian u. Differentiating tanh through the latents, as others do, would be off by a quarter here."""
    u = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sae = build(d_sae=1, target_l0=0.5, sparsity=sparsity, tanh_scale=4.0, l0_coefficient=0.7)
    sae = sae.double()

    def penalty(u: Tensor, threshold: Tensor, epsilon: float) -> Tensor:
        del sae.threshold
        sae.threshold = threshold
        return PENALTIES[sparsity](sae, u, epsilon, TrainingState())

    estimate, difference = estimate_and_difference(penalty, u, 0.6)
    torch.testing.assert_close(estimate, difference, rtol=0.05, atol=0)


def test_tanh_of_active_latents_is_differentiated_exactly() -> None:
    sae = build(sparsity="tanh", tanh_scale=2.0, l0_coefficient=0.7)
    with torch.no_grad():
        sae.threshold.fill_(0.5)
        sae.decoder.weight.mul_(3)
    pre = torch.randn(20, 10, requires_grad=True)
    state = TrainingState(values={"scale": 4.0, "l0_coefficient": 0.9})
    cost = PENALTIES["tanh"](sae, pre, 0.01, state)
    expected = 0.9 / 3 * (torch.tanh(2.0 / 4.0 * 3 * pre) * (pre > 0.5)).sum(-1).mean()
    torch.testing.assert_close(cost, expected)
    ours, theirs = (torch.autograd.grad(loss, pre)[0] for loss in (cost, expected))
    torch.testing.assert_close(ours, theirs)


def test_quadratic_pulls_from_both_sides_and_rests_at_the_target() -> None:
    sae, x = build(sparsity="quadratic", quadratic_coefficient=2.0, bandwidth=0.5), torch.randn(400, 6)
    for level, sign in ((0.05, -1), (1.5, 1)):  # too many latents: thresholds must rise
        with torch.no_grad():
            sae.threshold.fill_(level)
        sae.threshold.grad = None
        output = sae(x, state=TrainingState())
        torch.testing.assert_close(output.losses["l0"], 2.0 * (output.code.l0() / 3 - 1) ** 2)
        output.losses["l0"].backward()
        assert (sae.threshold.grad.sum() * sign) > 0
    state = TrainingState(l0=3.0)
    sae.after_step(state, output)
    assert "l0_coefficient" not in state.values, "the penalty has a weight of its own"


def test_settings_out_of_range_are_refused() -> None:
    for change in ({"target_l0": None, "sparsity": "quadratic"}, {"tanh_scale": 0.0}, {"quadratic_coefficient": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            build(**change)
    with pytest.raises(ConfigError, match="sparsity"):
        build(sparsity="cubic")
