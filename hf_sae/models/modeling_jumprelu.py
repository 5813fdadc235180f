"""JumpReLU: a threshold of its own for every latent.

Rajamanoharan et al. 2024, "Jumping Ahead" (arXiv 2407.14435): `z = u · 1[u > θ]` with `u = W_enc (x - b_dec) + b_enc`,
loss `‖x - x̂‖² + λ L0`. The step has no gradient; the paper estimates the gradient of the *expected* loss with a
rectangle kernel K of width ε (eq. 11 and 12): `∂z/∂θ = -(θ/ε) K((u-θ)/ε)`, `∂L0/∂θ = -(1/ε) K((u-θ)/ε)`. Both are
evaluated on the pre-activation, so that the whole kernel counts. The saved model uses the same thresholds.

Deviations: θ itself is trained (Adam's step hardly moves a logarithm), clamped at 0 and kept in float32; ε is
relative to the activations' scale; and where `target_l0` is given a controller moves λ and the thresholds' common level until that L0 comes true.
Dead latents stand just below their thresholds, and the pull on them is small beside what Adam remembers of the kernel's gradients:
under `revive_dead` their thresholds fall to the largest pre-activation of the last batch, so that they fire, and learn, again
(figures are in docs/methods.md).

`sparsity="tanh"` and `"quadratic"` replace `λ L0` by the penalties of `l0_penalties`; `"quadratic"` pulls towards `target_l0`
itself: of the controller it needs the thresholds' common level only.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, strict_config
from .l0_penalties import PENALTIES, in_full_precision
from .modeling_sae import SAE, Norm
from .outputs import Pass, SAEOutput, TrainingState, total_variance


SAMPLE_FOR_THRESHOLDS = 4096
# Gains of the L0 controller per optimiser step, tuned on planted data and on a small LM's residual stream.
L0_SMOOTHING, SHIFT_GAIN, INTEGRAL_GAIN, MAX_EXCESS = 0.2, 0.03, 0.05, 1.0


@strict_config
class JumpReLUConfig(SAEConfig):
    """[`SAEConfig`] plus how thresholds are trained.

    Args:
        target_l0 (`float`, *optional*): the mean number of latents per token to arrive at; a controller sees
            to it. `None` keeps λ at `l0_coefficient`.
        l0_coefficient (`float`): λ (its first value under a controller), per `target_l0` or else per latent.
        bandwidth (`float`): width ε of the kernel, in standard deviations of an input dimension.
        dead_coefficient (`float`): weight of `ReLU(θ - u)` on dead latents, which brings them back (0 = off).
        revive_dead (`bool`): lower the thresholds of dead latents to what they reached in the last batch.
        sparsity (`str`): `"step"`: `λ L0`. `"tanh"`: `λ Σ tanh(c u ‖w‖) 1[u > θ]`. `"quadratic"`:
            `quadratic_coefficient · (L0 / target_l0 - 1)²` with the mean L0 of the batch.
        tanh_scale (`float`): c, for u in standard deviations of an input dimension.
        quadratic_coefficient (`float`): λ of the quadratic penalty, at which being off by all of the target costs so much
            of the variance.
    """

    model_type = "hf_sae_jumprelu"

    target_l0: float | int | None = 32
    l0_coefficient: float | int = 0.02
    bandwidth: float | int = 0.3
    dead_coefficient: float | int = 1e-4
    revive_dead: bool = True
    sparsity: Literal["step", "tanh", "quadratic"] = "step"
    tanh_scale: float | int = 4.0
    quadratic_coefficient: float | int = 1.0

    def validate_sparsity(self) -> None:
        """Targets and widths are positive and finite."""
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.d_sae:
            raise ValueError(f"target_l0={self.target_l0} must be above 0 and at most d_sae={self.d_sae}.")
        for name in ("bandwidth", "tanh_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a positive finite number.")
        require_amounts(self, "l0_coefficient", "dead_coefficient", "quadratic_coefficient")
        if self.sparsity == "quadratic" and self.target_l0 is None:
            raise ValueError("sparsity='quadratic' pulls L0 towards target_l0, which is None: give target_l0.")


class _JumpReLU(torch.autograd.Function):
    """`u · 1[u > θ]`; exact gradient for u, kernel estimate for θ."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2) * grad
        grad_threshold = -(threshold / ctx.bandwidth) * near.reshape(-1, pre.shape[-1]).sum(0)
        return grad * (pre > threshold), grad_threshold, None


class JumpReLUSAE(SAE):
    """An autoencoder whose latents are pre-activations above a learnt threshold."""

    config: JumpReLUConfig
    paper: ClassVar[str] = "Rajamanoharan et al. 2024, Jumping ahead, arXiv:2407.14435"
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight", "threshold")
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold"]

    def __init__(self, config: JumpReLUConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.empty(config.d_sae))
        self.decoder.learns_at_zero = True  # the kernel reaches latents just below their thresholds
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.threshold, 1e-3)

    def activate(self, pre_activations: Tensor, epsilon: float = 1e-3) -> Tensor:
        """Dense latents `u · 1[u > θ]`, compared in float32; `epsilon` is the kernel's width in units of u."""
        latents = _JumpReLU.apply(in_full_precision(pre_activations), self.threshold, epsilon)
        return latents.to(pre_activations.dtype)

    def latents_of(self, x: Tensor, norm: Norm | None, state: TrainingState | None = None) -> tuple[Tensor, Tensor]:
        """Dense latents and pre-activations."""
        pre = self.pre_activations(x)
        return self.activate(pre, self._epsilon(state)), pre

    def _epsilon(self, state: TrainingState | None) -> float:
        return self.config.bandwidth * (1.0 if state is None else state.values.get("scale", 1.0))

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """What `config.sparsity` asks for, and the pull on dead latents."""
        state, pre = result.state, self._pre_of(result)
        losses = {"l0": PENALTIES[self.config.sparsity](self, pre, self._epsilon(state), state)}
        return losses | pull_on_dead(self, state, lambda dead: (self.threshold - pre)[..., dead])

    def _pre_of(self, result: Pass) -> Tensor:
        pre = self.pre_activations(result.x) if result.pre_activations is None else result.pre_activations
        return in_full_precision(pre)

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """The largest pre-activation of each latent, where some are dead."""
        dead = result.state.dead()
        if not self.config.revive_dead or dead is None or not dead.any():
            return {}
        return {"pre_max": self._pre_of(result).flatten(0, -2).amax(0)}

    @torch.no_grad()
    def measure(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`], and the scale of the input, which the kernel's width is relative to."""
        super().measure(x, target, state)
        state.values["scale"] = scale_of(self, x)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Starts every latent at the threshold at which it fires as often as `target_l0` asks of the average one."""
        super().initialize_from(x, target, state)
        if self.config.target_l0 is not None:
            self.threshold.copy_(rarest(self, x, self.config.target_l0).clamp_min(0))

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """Thresholds of at least 0, those of dead latents within reach, and one step of the controller."""
        super().after_step(state, output)
        if self.threshold.requires_grad:
            dead, known = state.dead(), (output.statistics if output is not None else None) or {}
            if dead is not None and "pre_max" in known:
                reached = torch.minimum(self.threshold, known["pre_max"].to(self.threshold))
                self.threshold.copy_(torch.where(dead, reached, self.threshold))
            self.threshold.clamp_(min=0)
        if self.config.target_l0 is not None:
            self._control(state, self.config.target_l0)

    def _control(self, state: TrainingState, target: float) -> None:
        """Two loops on the logarithm of L0 over its target (logarithms, because both span decades).

        A fast one moves all thresholds together, since Adam moves them by its learning rate and no faster. A slow one
        integrates into log λ, until the gradient no longer pulls the thresholds away from the asked L0; a penalty that has
        the asked L0 in it needs none.
        """
        excess = excess_l0(state, target)
        if self.threshold.requires_grad:  # frozen ones (under an adapter) leave the control to λ
            typical = self.dictionary.sum(self.threshold.sum()) / self.config.d_sae
            typical = typical.clamp_min(0.01 * state.values.get("scale", 1.0))
            self.threshold.add_(typical * (SHIFT_GAIN * excess)).clamp_(min=0)
        if PENALTIES[self.config.sparsity].is_weighted:
            integrate(state, "l0_coefficient", excess, self.config.l0_coefficient)


@torch.no_grad()
def scale_of(sae: SAE, x: Tensor) -> float:
    """The standard deviation of a dimension of the normalised input, of a sample `[tokens, d_in]`."""
    return math.sqrt(total_variance(sae.normalize(x[:SAMPLE_FOR_THRESHOLDS])[0]) / sae.config.d_in)


@torch.no_grad()
def rarest(sae: SAE, x: Tensor, target_l0: float) -> Tensor:
    """`[d_sae]`: above which pre-activation each latent fires on a share `target_l0 / d_sae` of a sample of inputs
    `[tokens, d_in]`; on at least one of them, and not on all of several."""
    x, _ = sae.normalize(x[:SAMPLE_FOR_THRESHOLDS])
    firing = max(1, min(x.shape[0] - 1, round(x.shape[0] * target_l0 / sae.config.d_sae)))
    largest = in_full_precision(sae.pre_activations(x)).topk(min(firing + 1, x.shape[0]), dim=0).values
    # half-way to the next: at a token's own pre-activation, rounding would decide whether it fires on that token
    return largest[-2:].mean(0)


def excess_l0(state: TrainingState, target: float) -> float:
    """The logarithm of L0 (smoothed over steps in `state.values`) over its target, bounded."""
    smooth = state.values.get("l0_smooth", state.l0)
    state.values["l0_smooth"] = smooth = smooth + L0_SMOOTHING * (state.l0 - smooth)
    return max(-MAX_EXCESS, min(MAX_EXCESS, math.log(max(smooth, 1e-3) / target)))


def integrate(state: TrainingState, name: str, excess: float, first: float) -> None:
    """The slow loop of a controller: multiplies the coefficient `state.values[name]`, at first `first`, by an excess."""
    values = state.values
    values["integral"] = max(-12.0, min(12.0, values.get("integral", 0.0) + INTEGRAL_GAIN * excess))
    values[name] = first * math.exp(values["integral"])


def pull_on_dead(sae: SAE, state: TrainingState, missing: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`dead_coefficient · mean Σ ReLU(missing)` over dead latents, in standard deviations of the input; empty without any.

    Args:
        sae ([`SAE`]): whose config has `dead_coefficient`.
        state ([`TrainingState`]): with counters and the input's scale.
        missing (`Callable`): from a mask `[d_sae]` to how much each of its latents lacks to fire, `[tokens, latents]`.
    """
    dead = state.dead()
    if dead is None or not sae.config.dead_coefficient or not sae.dictionary.count(dead):
        return {}
    below = sae.dictionary.sum(torch.relu(missing(dead)).sum(-1).mean())
    return {"dead": sae.config.dead_coefficient * below / state.values.get("scale", 1.0)}
