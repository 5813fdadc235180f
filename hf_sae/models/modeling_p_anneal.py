"""p-annealed L1: a penalty that starts as L1 and ends close to counting.

Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with Board Game Models" (arXiv
2408.00113): `z = ReLU(u)` with the loss `‖x - x̂‖² + λ Σ z_i^p`. L1 shrinks what it keeps; a small p does so less, but is not convex:
p starts at 1 and falls in steps. At each step λ is multiplied by the ratio of the penalties with the old and the new p, summed over
the last steps before it, so that the penalty goes on at the value it had. The saved model is a ReLU autoencoder.

[recon] The end of p (0.2), its share of the run and `SMOOTHING` are ours; that λ follows a ratio of sums over a queue of ten steps is
read in dictionary_learning's code. z is measured in units of the targets' total standard deviation, weighted by the decoder's norms.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_sae import SAE
from .modeling_standard import contributions, dense, warm_up
from .outputs import Pass, SAEOutput, TrainingState


QUEUE_STEPS = 10  # whose penalties are compared where p falls
SMOOTHING = 1e-3  # ε of `(z + ε)^p - ε^p`: z^p has no bounded slope at 0


@strict_config
class PAnnealConfig(SAEConfig):
    """[`SAEConfig`] plus the penalty's strength and the way of its exponent.

    Args:
        l1_coefficient (`float`): λ while p is 1; as in [`StandardConfig`].
        l1_warmup_share (`float`): share of the training steps over which λ rises from 0.
        p_end (`float`): the last exponent.
        p_steps (`int`): in how many equal steps p falls from 1 to `p_end`.
        anneal_start_share, anneal_end_share (`float`): the shares of the training steps at which p begins to fall and at which it
            has arrived.
    """

    model_type = "hf_sae_p_anneal"

    l1_coefficient: float | int = 0.1
    l1_warmup_share: float | int = 0.05
    p_end: float | int = 0.2
    p_steps: int = 10
    anneal_start_share: float | int = 0.1
    anneal_end_share: float | int = 0.9

    def validate_annealing(self) -> None:
        """λ is an amount, shares are shares in order, p stays above 0 and falls at least once."""
        require_amounts(self, "l1_coefficient")
        require_between(self, 0, 1, "l1_warmup_share", "anneal_start_share", "anneal_end_share")
        if self.anneal_end_share < self.anneal_start_share:
            raise ValueError(
                f"anneal_end_share={self.anneal_end_share} is before anneal_start_share={self.anneal_start_share}. "
                "Raise it or lower the start."
            )
        if not 0 < self.p_end <= 1:
            raise ValueError(f"p_end={self.p_end} must be above 0 and at most 1 (at 0 the penalty has no gradient).")
        if not 1 <= self.p_steps <= 10**6:
            raise ValueError(f"p_steps={self.p_steps} must be at least 1 and at most a million.")


class PAnnealSAE(SAE):
    """An autoencoder whose latents are rectified pre-activations, trained with an annealed penalty."""

    config: PAnnealConfig
    paper: ClassVar[str] = (
        "Karvonen et al. 2024, Measuring progress in dictionary learning for language model interpretability with board "
        "game models, arXiv:2408.00113"
    )
    per_latent: ClassVar[tuple[str, ...]] = ("encoder.weight", "encoder.bias", "decoder.weight")

    def __init__(self, config: PAnnealConfig) -> None:
        super().__init__(config)
        self.post_init()

    def exponent(self, step: int, total_steps: int) -> float:
        """p at an optimiser step."""
        config = self.config
        start, end = config.anneal_start_share * total_steps, config.anneal_end_share * total_steps
        if step < start:
            return 1.0
        fallen = (
            config.p_steps
            if end <= start
            else min(config.p_steps, 1 + int((step - start) / (end - start) * config.p_steps))
        )
        return 1.0 - (1.0 - config.p_end) * fallen / config.p_steps

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`λ Σ z_i^p`, with λ as far as it has been rescaled."""
        state = result.state
        strength = self.config.l1_coefficient * state.values.get("l1_scale", 1.0)
        cost = self._cost(result, state.values.get("p", 1.0))
        return {"l1": strength * warm_up(self.config.l1_warmup_share, state) * cost}

    def _cost(self, result: Pass, p: float) -> Tensor:
        """Mean over tokens of `Σ (z_i + ε)^p - ε^p`; exactly `Σ z_i` at p = 1."""
        size = contributions(self, result, dense(result.latents))
        each = size if p == 1 else (size + SMOOTHING).pow(p) - SMOOTHING**p
        return self.dictionary.sum(each.sum(-1).mean())

    @torch.no_grad()
    def statistics(self, result: Pass) -> dict[str, Tensor]:
        """The penalty with this p and with the next one, in the last steps before p falls."""
        state = result.state
        now = self.exponent(state.step, state.total_steps)
        coming = (self.exponent(state.step + ahead, state.total_steps) for ahead in range(1, QUEUE_STEPS + 1))
        following = next((p for p in coming if p != now), None)
        if following is None:
            return {}
        return {"cost": torch.stack([self._cost(result, now), self._cost(result, following)])}

    @torch.no_grad()
    def before_step(self, state: TrainingState) -> None:
        """Where p falls, λ takes the ratio of the penalties in the queue."""
        p, before = self.exponent(state.step, state.total_steps), state.values.get("p", 1.0)
        queue = state.tensors.pop("costs", None) if p != before else None
        if queue is not None and queue[:, 1].sum() > 0:
            ratio = float(queue[:, 0].sum() / queue[:, 1].sum())
            state.values["l1_scale"] = state.values.get("l1_scale", 1.0) * ratio
        state.values["p"] = p

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """Queues what [`statistics`] measured."""
        super().after_step(state, output)
        cost = (output.statistics or {}).get("cost")
        if cost is not None:
            queue = state.tensors.get("costs", cost.new_zeros(0, 2))
            state.tensors["costs"] = torch.cat([queue, cost.unsqueeze(0)])[-QUEUE_STEPS:]
