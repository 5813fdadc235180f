"""Group Bias Adaptation: feedback on each latent's firing frequency in place of a sparsity loss.

Chen et al. 2025, "Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders" (arXiv 2506.14002). With unit atoms w,
output scales a and biases b in [-1, 0]:

    v = w·(x - b_dec),   y = v + b,   z = a v 1[y > 0],   x̂ = Σ z w + b_dec,   loss ‖x - x̂‖²

The loss trains w, a and b_dec, and b has no gradient. Every `adapt_every` steps, with the frequency p of y > 0 and the maximum r = max(0, max y)
of each latent since the last time: b falls by `decrease · r` where p is above the target of the latent's group; b rises by
`increase` times the mean positive r of the group where p is below `rare`. Between the two nothing happens, on purpose. Groups are
equally large, their targets geometric; one group is BA. The biases rest before training ends, and the saved model is a tied JumpReLU
with `θ = -b`, which is what it stores: `threshold` (in units of the normalised input).

* [recon] All is from second-hand reading: the form of the jump (value v, gate y) is our reading of it. Sources disagree on the
  highest target: one names 0.5, another 0.1 (`highest_frequency`); the lowest is named as 1e-3 to 1e-4.
* b in [-1, 0] assumes inputs of length 1: b is in units of the root mean square norm of the centred, normalised input.
* Deviations: `adapt_every` is 50 in the paper and at most a two-hundredth of the run here, for short runs; latents start at the thresholds
  at which they fire as often as their targets (`start_at_targets`), and a starts where the first reconstructions have the right length.
* A maximum depends on outliers: one large activation moves a bias by much.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .l0_penalties import in_full_precision
from .modeling_jumprelu import SAMPLE_FOR_THRESHOLDS, scale_of
from .modeling_sae import SAE
from .modeling_topk import length_scale
from .mostly_zero import encode as encode_mostly_zero
from .outputs import Pass, SAEOutput, TrainingState


@strict_config
class GBAConfig(SAEConfig):
    """[`SAEConfig`] plus how biases are adapted.

    Args:
        n_groups (`int`): groups of latents; at least 10 in the paper, 1 is BA.
        highest_frequency, lowest_frequency (`float`): targets of the first and the last group, upper bounds on the share of tokens on which a
            latent fires; those between are geometric. One group has the highest.
        decrease, increase (`float`): γ₋ and γ₊, shares of the maxima by which a bias moves.
        rare (`float`): frequency below which a bias rises.
        adapt_every (`int`, *optional*): optimiser steps between adaptations; `None` is 50, and in short runs a two-hundredth.
        adapt_share (`float`): share of the training steps after which biases rest.
        start_at_targets (`bool`): start each latent at its target frequency; otherwise all biases start at 0.
    """

    model_type = "hf_sae_gba"
    tied = True

    n_groups: int = 10
    highest_frequency: float | int = 0.1
    lowest_frequency: float | int = 1e-3
    decrease: float | int = 0.01
    increase: float | int = 0.01
    rare: float | int = 1e-6
    adapt_every: int | None = None
    adapt_share: float | int = 0.85
    start_at_targets: bool = True

    def validate_adaptation(self) -> None:
        """Groups have latents, frequencies are shares in order, steps are amounts."""
        require_between(self, 1, self.d_sae, "n_groups")
        require_between(self, 0, 1, "highest_frequency", "lowest_frequency", "rare", "adapt_share")
        require_amounts(self, "decrease", "increase")
        if not self.rare < self.lowest_frequency <= self.highest_frequency:
            raise ValueError(
                f"rare={self.rare}, lowest_frequency={self.lowest_frequency} and highest_frequency="
                f"{self.highest_frequency} must be in this order, the first two apart."
            )
        if self.adapt_every is not None and self.adapt_every < 1:
            raise ValueError(f"adapt_every={self.adapt_every} must be at least 1 step, or None.")


class GBASAE(SAE):
    """A tied autoencoder whose latents' frequencies are controlled by feedback on their biases."""

    config: GBAConfig
    threshold: Tensor
    paper: ClassVar[str] = (
        "Chen et al. 2025, Taming polysemanticity in LLMs: provable feature recovery via sparse autoencoders, arXiv:2506.14002"
    )
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold"]

    def __init__(self, config: GBAConfig) -> None:
        super().__init__(config)
        self.latent_scale = nn.Parameter(torch.empty(config.d_sae))
        self.register_buffer("threshold", torch.empty(config.d_sae))
        self.post_init()

    @staticmethod
    def make_encoder(config: SAEConfig) -> None:
        """None: the decoder's rows read."""

    def init_encoder(self) -> None:
        """Nothing to set."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.ones_(self.latent_scale)
            init.zeros_(self.threshold)

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, d_sae]`, read-only: the decoder's rows."""
        return self.W_dec.T

    @property
    def b_enc(self) -> Tensor:
        """`[d_sae]`, zeros: biases gate, they are no part of what is gated."""
        return torch.zeros_like(self.W_dec[:, 0])

    def pre_activations(self, x: Tensor) -> Tensor:
        """`[..., d_sae]`: v, the projections on the atoms."""
        bias, weight = self.dictionary.copy(self.decoder()), self.decoder.weight
        shift = bias if self.config.subtracts_bias else None
        if torch.is_grad_enabled():
            rows = x.reshape(-1, x.shape[-1])
            return encode_mostly_zero(rows, (weight, self.b_enc), shift).view(*x.shape[:-1], len(weight))
        return F.linear(x if shift is None else x - shift, weight)

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents `a v 1[v > θ]`, compared in float32."""
        fires = in_full_precision(pre_activations) > self.threshold
        return pre_activations * fires * self.latent_scale.to(pre_activations.dtype)

    def targets(self) -> Tensor:
        """`[d_sae]`: the frequency above which each latent's bias falls."""
        return _frequencies(self.config)[self._groups()].to(self.threshold)

    def _groups(self) -> Tensor:
        """`[d_sae]`: the group of each latent; sizes differ by one at most."""
        config = self.config
        return torch.arange(config.d_sae, device=self.threshold.device) * config.n_groups // config.d_sae

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """How often each latent's y is positive, and its maximum."""
        pre = self.pre_activations(result.x) if result.pre_activations is None else result.pre_activations
        y = in_full_precision(pre).reshape(-1, self.config.d_sae) - self.threshold
        return {"frequency": (y > 0).to(y.dtype).mean(0), "y_max": y.amax(0)}

    @torch.no_grad()
    def measure(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`], and the unit of the biases."""
        super().measure(x, target, state)
        state.values["unit"] = scale_of(self, x) * math.sqrt(self.config.d_in)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Starts every latent at its target frequency, and all at the scale of the best reconstruction."""
        super().initialize_from(x, target, state)
        if self.config.start_at_targets:
            sample, _ = self.normalize(x[:SAMPLE_FOR_THRESHOLDS])
            ranked = in_full_precision(self.pre_activations(sample)).sort(dim=0, descending=True).values
            rank = (self.targets() * len(sample)).long().clamp(1, len(sample)) - 1
            start = ranked.gather(0, rank.unsqueeze(0)).squeeze(0)
            self.threshold.copy_(start.clamp(0, state.values["unit"]))
        self.latent_scale.mul_(length_scale(self, x))

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """Collects [`statistics`], and adapts the biases when it is time."""
        super().after_step(state, output)
        if not output.statistics or state.step > self.config.adapt_share * state.total_steps:
            return
        frequency, y_max = output.statistics["frequency"], output.statistics["y_max"]
        tensors, values = state.tensors, state.values
        steps = values["gba_steps"] = values.get("gba_steps", 0.0) + 1
        tensors["gba_frequency"] = tensors.get("gba_frequency", 0) + frequency
        tensors["gba_max"] = torch.maximum(tensors["gba_max"], y_max) if "gba_max" in tensors else y_max
        every = self.config.adapt_every or min(50, max(1, state.total_steps // 200))
        if steps >= every:
            self.adapt(tensors.pop("gba_frequency") / steps, tensors.pop("gba_max"), values.get("unit", 1.0))
            values["gba_steps"] = 0.0

    @torch.no_grad()
    def adapt(self, frequency: Tensor, y_max: Tensor, unit: float = 1.0) -> None:
        """Moves the biases once.

        Args:
            frequency (`Tensor`): `[d_sae]`, share of the tokens on which y was positive.
            y_max (`Tensor`): `[d_sae]`, its maximum.
            unit (`float`): the length that a bias of -1 stands for.
        """
        config, groups = self.config, self._groups()
        bias, reach = -self.threshold / unit, y_max.clamp_min(0) / unit
        sums = torch.zeros(2, config.n_groups, device=reach.device, dtype=reach.dtype)
        sums.index_add_(1, groups, torch.stack([reach, (reach > 0).to(reach.dtype)]))
        typical = (sums[0] / sums[1].clamp_min(1))[groups]
        lower = (bias - config.decrease * reach).clamp_min(-1)
        higher = (bias + config.increase * typical).clamp_max(0)
        bias = torch.where(frequency > self.targets(), lower, torch.where(frequency < config.rare, higher, bias))
        self.threshold.copy_(-bias * unit)


def _frequencies(config: GBAConfig) -> Tensor:
    """`[n_groups]`: the groups' targets, highest first."""
    ends = (math.log(config.highest_frequency), math.log(config.lowest_frequency))
    return torch.linspace(*ends, config.n_groups, dtype=torch.float64).exp()
