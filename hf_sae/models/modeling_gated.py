"""Gated: one affine map says whether a latent is on, another how much.

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders" (arXiv 2404.16014). With
`v = W_enc (x - b_dec)`: gate `π = v + b_gate`, magnitude `m = ReLU(e^r v + b_mag)`, latents `z = 1[π > 0] m`, and the loss is

    ‖x - x̂(z)‖² + λ Σ ReLU(π_i) + ‖x - x̂_frozen(ReLU(π))‖²

where x̂_frozen reads a dictionary that gets no gradient. The penalty acts on the gate, which the first term gives no gradient;
the magnitude gets its gradient from the first term alone, so that nothing shrinks it. The saved model gates in the same way: it is a
JumpReLU with `θ = b_mag - e^r b_gate` (`to_jumprelu`).

* b_gate is `encoder.bias`, so that pre-activations are π.
* SAELens weights the penalty by `‖w_i‖` and lets the third term train the dictionary: `weighted_l1` and `frozen_decoder`.
* Deviations: where `target_l0` is given, gates start open as often as it asks (all else as in the paper, zero), and the controller of
  JumpReLU moves λ and the gates' common level until it comes true; dead latents are pulled towards opening.
"""

import copy
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .l0_penalties import in_full_precision
from .modeling_jumprelu import (
    SHIFT_GAIN,
    JumpReLUConfig,
    JumpReLUSAE,
    excess_l0,
    integrate,
    pull_on_dead,
    rarest,
    scale_of,
)
from .modeling_sae import SAE
from .modeling_standard import contributions, dense, warm_up
from .mostly_zero import decode as decode_mostly_zero
from .outputs import Pass, SAEOutput, TrainingState


@strict_config
class GatedConfig(SAEConfig):
    """[`SAEConfig`] plus how gates are trained.

    Args:
        target_l0 (`float`, *optional*): the mean number of latents per token to arrive at; a controller sees to it.
            `None` keeps λ at `l1_coefficient` and starts with all gates at 0, as in the paper.
        l1_coefficient (`float`): λ (its first value under a controller), for gates in units of the targets' total standard deviation.
        l1_warmup_share (`float`): share of the training steps over which λ rises from 0.
        frozen_decoder (`bool`): the gates' own reconstruction gives the decoder no gradient.
        weighted_l1 (`bool`): weight the penalty by the norms of the decoder's rows, of whose gradient the part along a row does
            nothing where rows have unit norm.
        dead_coefficient (`float`): weight of `ReLU(-π)` on dead latents, which brings them back (0 = off).
    """

    model_type = "hf_sae_gated"

    target_l0: float | int | None = 32
    l1_coefficient: float | int = 0.1
    l1_warmup_share: float | int = 0.05
    frozen_decoder: bool = True
    weighted_l1: bool = False
    dead_coefficient: float | int = 1e-4

    def validate_gates(self) -> None:
        """The target is positive and at most d_sae, weights are amounts, the share is a share."""
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.d_sae:
            raise ValueError(f"target_l0={self.target_l0} must be above 0 and at most d_sae={self.d_sae}.")
        require_amounts(self, "l1_coefficient", "dead_coefficient")
        require_between(self, 0, 1, "l1_warmup_share")


class GatedSAE(SAE):
    """An autoencoder that decides by one affine map of its input and measures by another."""

    config: GatedConfig
    paper: ClassVar[str] = (
        "Rajamanoharan et al. 2024, Improving dictionary learning with gated sparse autoencoders, arXiv:2404.16014"
    )
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight", "r_mag", "b_mag")

    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.empty(config.d_sae))
        self.b_mag = nn.Parameter(torch.empty(config.d_sae))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.r_mag)
            init.zeros_(self.b_mag)

    @property
    def b_gate(self) -> Tensor:
        """`[d_sae]`, read-only: the encoder's bias."""
        return self.b_enc

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents `1[π > 0] ReLU(e^r (π - b_gate) + b_mag)` of pre-activations π; π itself gets the magnitude's gradient."""
        plain = pre_activations - self.encoder.bias
        magnitude = torch.relu(plain * self.r_mag.exp() + self.b_mag)
        return (magnitude * (pre_activations > 0)).to(pre_activations.dtype)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """The penalty on the gates, the error of their own reconstruction, and the pull on dead latents."""
        config, state = self.config, result.state
        gates = self.pre_activations(result.x) if result.pre_activations is None else result.pre_activations
        opened = torch.relu(gates)
        strength = state.values.get("l1_coefficient", config.l1_coefficient) * warm_up(config.l1_warmup_share, state)
        l1 = contributions(self, result, opened, weighted=config.weighted_l1).sum(-1).mean()
        losses = {"l1": strength * self.dictionary.sum(l1), "gate": self._error_of_gates(result, opened)}
        return losses | pull_on_dead(self, state, lambda dead: -gates[..., dead])

    def _error_of_gates(self, result: Pass, opened: Tensor) -> Tensor:
        """`‖target - x̂(ReLU(π))‖²` in shares of the variance: the known error, with one code exchanged for the other."""
        latents, error, weight = dense(result.latents), result.error, self.decoder.weight
        if self.config.frozen_decoder:  # the error carries decoder bias and skip
            latents, error, weight = latents.detach(), error.detach(), weight.detach()
        difference = self.dictionary.sum(_write(latents, weight) - _write(opened, weight))
        error = error + self.to_output_units(difference, result.norm)
        return error.square().sum(-1).mean() / result.state.normaliser

    @torch.no_grad()
    def measure(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`], and the scale of the input."""
        super().measure(x, target, state)
        state.values["scale"] = scale_of(self, x)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """Starts every gate where it opens as often as `target_l0` asks of the average one."""
        super().initialize_from(x, target, state)
        if self.config.target_l0 is not None:
            self.encoder.bias.sub_(rarest(self, x, self.config.target_l0))

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """One step of the controller."""
        super().after_step(state, output)
        if self.config.target_l0 is None:
            return
        excess = excess_l0(state, self.config.target_l0)
        bias = self.encoder.bias
        if bias.requires_grad:  # frozen ones (under an adapter) leave the control to λ
            typical = self.dictionary.sum(torch.relu(-bias).sum()) / self.config.d_sae
            bias.sub_(typical.clamp_min(0.01 * state.values.get("scale", 1.0)) * (SHIFT_GAIN * excess))
        integrate(state, "l1_coefficient", excess, self.config.l1_coefficient)

    @torch.no_grad()
    def to_jumprelu(self) -> JumpReLUSAE:
        """The JumpReLU with the same latents: encoder rows `e^r w`, biases `b_mag`, `θ = max(b_mag - e^r b_gate, 0)`.

        Exact for every θ: where `b_mag - e^r b_gate` is negative, the gate is open wherever the magnitude is positive, and
        the latent is `ReLU(e^r v + b_mag)`, which is JumpReLU at 0. An adapter on the encoder is merged in.
        """
        shared = {f.name for f in fields(SAEConfig)} - {f.name for f in fields(PreTrainedConfig)}
        values = {name: copy.deepcopy(getattr(self.config, name)) for name in shared}
        sae = JumpReLUSAE(JumpReLUConfig(**values, target_l0=self.config.target_l0))
        sae = sae.to(device=self.decoder.weight.device, dtype=self.dtype).train(self.training)
        scale = self.r_mag.exp()
        sae.encoder.weight.copy_(self.W_enc.T * scale.unsqueeze(-1))
        sae.encoder.bias.copy_(self.b_mag)
        sae.threshold.data = in_full_precision(self.b_mag - scale * self.b_enc).clamp_min(0)
        sae.decoder.load_state_dict(self.decoder.state_dict())
        if sae.skip is not None and self.skip is not None:
            sae.skip.load_state_dict(self.skip.state_dict())
        sae.feature_stats, sae.fitted = copy.deepcopy(self.feature_stats), self.fitted
        return sae


def _write(latents: Tensor, weight: Tensor) -> Tensor:
    """`latents @ weight`; zeros get no gradient."""
    latents = latents.to(weight.dtype)
    if not torch.is_grad_enabled():
        return latents @ weight
    return decode_mostly_zero(latents.flatten(0, -2), weight, False).view(*latents.shape[:-1], weight.shape[1])
