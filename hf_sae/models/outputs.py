"""What a forward pass needs from training, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .sparse_code import SparseCode


@dataclass
class TrainingState:
    """What training carries from step to step; owned, reduced over processes and saved by the trainer.

    Args:
        step (`int`): optimiser steps done.
        tokens (`int`): tokens trained on.
        total_steps (`int`): optimiser steps planned, for schedules.
        normaliser (`float`): total variance of the targets (sum over `d_out`), estimated once: losses are divided by
            it, which makes them scale-free and leaves gradients additive over ranks and micro-batches.
        tokens_since_fired (`Tensor`): `[d_sae]`, tokens since each latent last fired; empty where nobody counts.
        dead_after_tokens (`int`): a latent is dead when it has not fired for so many tokens.
        k (`int`, *optional*): latents per token at this step, where a schedule changes it.
        l0 (`float`): mean latents per token of the last step, over all processes.
        values (`dict`): numbers of the architecture's own, such as a controller's.
        tensors (`dict`): tensors of the architecture's own, such as running densities; saved and resumed as they are.
        given (`dict`): what an architecture `needs` of each token of the current pass besides its activation, by name.
    """

    step: int = 0
    tokens: int = 0
    total_steps: int = 1
    normaliser: float = 1.0
    tokens_since_fired: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    dead_after_tokens: int = 10_000_000
    k: int | None = None
    l0: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)

    def dead(self) -> Tensor | None:
        """`[d_sae]` mask of the dead latents, or `None` where nothing is counted."""
        return self.tokens_since_fired > self.dead_after_tokens if self.tokens_since_fired.numel() else None


@dataclass
class SAEOutput(ModelOutput):
    """What `forward` returns; access fields by name, `None` fields are left out.

    Args:
        loss (`Tensor`, *optional*): scalar, where a target or a training state was given or the model trains.
        losses (`dict`, *optional*): its parts, already weighted.
        fvu (`Tensor`, *optional*): squared error of the whole code over the loss's normaliser.
        reconstruction (`Tensor`): `[..., d_out]`, skip included.
        latents (`Tensor` or [`SparseCode`]): dense `[..., d_sae]` or a code, as the architecture prefers.
        pre_activations (`Tensor`, *optional*): `[..., d_sae]`, on request.
        statistics (`dict`, *optional*): in training, what the architecture wants to know of the whole batch.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    fvu: Tensor | None = None
    reconstruction: Tensor | None = None
    latents: Tensor | SparseCode | None = None
    pre_activations: Tensor | None = None
    statistics: dict[str, Tensor] | None = None

    @property
    def code(self) -> SparseCode:
        """The latents as a [`SparseCode`]."""
        if self.latents is None:
            raise ValueError("this output has no latents.")
        return self.latents if isinstance(self.latents, SparseCode) else SparseCode.from_dense(self.latents)


@dataclass
class Pass:
    """One forward pass, for an architecture's penalties."""

    x: Tensor  # [tokens, d_in], normalised
    norm: tuple[Tensor, Tensor] | None
    latents: Tensor | SparseCode
    pre_activations: Tensor | None
    error: Tensor  # [tokens, d_out], target minus reconstruction, in the target's units; may be outside the graph
    state: TrainingState
    target: Tensor  # [tokens, d_out], what is reconstructed


def total_variance(x: Tensor) -> float:
    """Sum over dimensions of the variance over tokens of `[..., d]`; at least the smallest normal number."""
    rows = x.detach().reshape(-1, x.shape[-1]).double()
    return max(float(rows.var(0, correction=0).sum()), torch.finfo(torch.float32).tiny)
