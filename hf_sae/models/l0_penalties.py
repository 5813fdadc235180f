"""What JumpReLU can pay for its active latents: one class per penalty, with the gradient estimates they share.

Every penalty is the expectation of `φ(u) · 1[u > θ]`, whose derivative in θ is `-φ(θ)` times the density of u there. It is
estimated as the derivative of the product with the step: `-φ(u) K((u-θ)/ε) / ε` with a rectangle kernel K of width ε, while
u has the exact derivative of φ above its threshold. Published implementations of the tanh penalty differentiate through
the latents instead; for any φ but a linear one that estimate is biased by `θ φ'` in place of φ, because half of the kernel sees
latents that are zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .outputs import TrainingState


class _Step(torch.autograd.Function):
    """`1[u > θ]`; kernel estimate for θ, nothing for u."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2) * grad
        return None, -near.reshape(-1, pre.shape[-1]).sum(0) / ctx.bandwidth, None


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`1[u > θ]` for `[..., d_sae]`; `∂/∂θ = -K((u-θ)/ε) / ε` with ε `bandwidth`, and no gradient for u."""
    return _Step.apply(pre, threshold, bandwidth)


def in_full_precision(x: Tensor) -> Tensor:
    """At least float32: thresholds are compared in no less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class StepPenalty:
    """`λ L0`, per `target_l0` or else per latent."""

    is_weighted = True  # by a λ that a controller may move to arrive at `target_l0`

    def __call__(self, sae: Any, pre: Tensor, epsilon: float, state: TrainingState) -> Tensor:
        """The weighted penalty, a scalar.

        Args:
            sae ([`JumpReLUSAE`]): whose thresholds and config are meant.
            pre (`Tensor`): `[tokens, d_sae]`, pre-activations in at least float32.
            epsilon (`float`): the kernel's width in units of `pre`.
            state ([`TrainingState`]): with the controller's λ and the input's scale.
        """
        strength = state.values.get("l0_coefficient", sae.config.l0_coefficient)
        return strength * mean_l0(sae, pre, epsilon) / (sae.config.target_l0 or sae.config.d_sae)


class TanhPenalty:
    """`λ Σ tanh(c u ‖w‖) 1[u > θ]`, per `target_l0` or else per latent, with u in units of the input's standard deviation.

    "Anthropic's circuits update of January 2025" [mem]: latents that barely fire cost little, none costs more than one.
    """

    is_weighted = True

    def __call__(self, sae: Any, pre: Tensor, epsilon: float, state: TrainingState) -> Tensor:
        """As in [`StepPenalty`]."""
        norms = in_full_precision(torch.linalg.vector_norm(sae.decoder.weight, dim=-1))
        size = torch.tanh(pre * norms * (sae.config.tanh_scale / state.values.get("scale", 1.0)))
        cost = sae.dictionary.sum((size * step(pre, sae.threshold, epsilon)).sum(-1).mean())
        strength = state.values.get("l0_coefficient", sae.config.l0_coefficient)
        return strength * cost / (sae.config.target_l0 or sae.config.d_sae)


class QuadraticPenalty:
    """`λ (L0 / target_l0 - 1)²` with the mean L0 of the batch, as in dictionary_learning.

    The other published form takes the square token by token, which also punishes that tokens differ. A batch that is
    computed in parts, or by several processes, pays for the L0 of each part.
    """

    is_weighted = False

    def __call__(self, sae: Any, pre: Tensor, epsilon: float, state: TrainingState) -> Tensor:
        """As in [`StepPenalty`]."""
        return sae.config.quadratic_coefficient * (mean_l0(sae, pre, epsilon) / sae.config.target_l0 - 1).square()


def mean_l0(sae: Any, pre: Tensor, epsilon: float) -> Tensor:
    """Mean number of active latents of `[tokens, d_sae]` pre-activations, with the kernel estimate for thresholds."""
    return sae.dictionary.sum(step(pre, sae.threshold, epsilon).sum(-1).mean())


PENALTIES = {"step": StepPenalty(), "tanh": TanhPenalty(), "quadratic": QuadraticPenalty()}
