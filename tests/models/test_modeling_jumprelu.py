from __future__ import annotations

import torch

from hf_sae.models import JumpReLUConfig, JumpReLUSAE, StandardConfig, StandardSAE, TrainingState
from hf_sae.models.l0_penalties import step
from hf_sae.models.modeling_jumprelu import _JumpReLU


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
