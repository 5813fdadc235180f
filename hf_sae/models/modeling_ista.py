"""ISTA: the encoder is a number of steps of the algorithm that solves the lasso on the decoder's own rows.

Daubechies et al. 2004 (iterative soft thresholding); as the layers of a network in Yu et al. 2023, "White-box transformers via sparse
rate reduction" (CRATE, arXiv 2306.01129). For `½‖x - b_dec - z W‖² + λ Σ z` with `z >= 0`, from `z = 0`:

    z ← ReLU(z + η W (x - b_dec - z W) - ηλ),    η <= 1 / ‖W Wᵀ‖

One step is a ReLU SAE with encoder ηW and bias -ηλ. η follows W by a few rounds of power iteration per optimiser step; η and λ are saved, and
the saved model takes the same steps.

Learnt atoms are coherent, so that η is a small part of what a sparse code could bear, and a few steps of it end far from the solution: shrunk
codes, on which the dictionary gets more coherent still. From the second on, steps are as long as each token bears: `‖Δz‖² / ‖ΔzW‖²` of its
last one (Barzilai & Borwein 1988; for the lasso SpaRSA, Wright, Nowak & Figueiredo 2009). A token whose objective would rise stays where
it is and goes on with η, so that no step climbs.

The loss is that objective, doubled. At its minimum over z it does not depend on z to first order: in training the gradient is that of the
dictionary at the code found and of the last step. Constant steps (`adaptive_steps=False`) have the gradient of all.

[`crate_step`] is CRATE's block: the same step, started at the token itself, with a square dictionary.

Reconstructed: the sources give the step, and this autoencoder around it is put together from it; λ is one number for all latents,
relative to the scale of the data. CRATE's steps are constant and learnt end to end.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from .configuration_sae import SAEConfig, require_amounts, require_between, strict_config
from .modeling_sae import SAE, Norm
from .modeling_standard import dense
from .outputs import Pass, SAEOutput, TrainingState, total_variance
from .pursuit import in_full_precision
from .tied import Tied, require_shared_bias


FIRST_ROUNDS, ROUNDS = 50, 4  # of power iteration, on new weights and after an optimiser step
MARGIN = 0.95  # power iteration finds the norm from below
LONGEST = 50  # of a token's steps, in units of η


@strict_config
class ISTAConfig(SAEConfig):
    """[`SAEConfig`] plus the steps and the penalty.

    Args:
        n_steps (`int`): steps of the encoder.
        adaptive_steps (`bool`): each token's steps are as long as the curvature along its last one allows; `False` is η throughout.
        l1_coefficient (`float`): λ, in units of the normalised inputs' total standard deviation.
    """

    model_type = "hf_sae_ista"
    tied = True

    n_steps: int = 10
    adaptive_steps: bool = True
    l1_coefficient: float | int = 0.1

    def validate_steps(self) -> None:
        """At least one step, a finite λ, and the bias is subtracted."""
        require_between(self, 1, 1000, "n_steps")
        require_amounts(self, "l1_coefficient")
        require_shared_bias(self)


class ISTASAE(Tied, SAE):
    """A tied autoencoder whose latents are an approximate lasso solution."""

    config: ISTAConfig
    threshold: Tensor
    step_size: Tensor
    paper: ClassVar[str] = "Yu et al. 2023, White-box transformers via sparse rate reduction, arXiv:2306.01129"
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["threshold", "step_size"]

    def __init__(self, config: ISTAConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.empty(()))  # λ, in units of a normalised input
        self.register_buffer("step_size", torch.empty(()))
        self.post_init()

    @torch.no_grad()
    def init_encoder(self) -> None:
        """λ for inputs of unit variance, and the step size of the decoder rows, which are set by now."""
        init.constant_(self.threshold, self.config.l1_coefficient)
        norm, _ = gram_norm(self.decoder.weight, None, FIRST_ROUNDS)
        init.copy_(self.step_size, MARGIN / norm)

    def latents_of(self, x: Tensor, norm: Norm | None, state: TrainingState | None = None) -> tuple[Tensor, None]:
        """Dense latents after `n_steps` steps from zero. In training, adaptive steps but the last one are outside the graph."""
        length = self.step_size.expand(*x.shape[:-1], 1)
        through_all = state is None or not self.config.adaptive_steps
        with torch.set_grad_enabled(torch.is_grad_enabled() and through_all):
            latents, length = self._descend(x, None, length, self.config.n_steps - 1)
        return self._descend(x, latents, length, 1)[0], None

    def _descend(self, x: Tensor, latents: Any, length: Tensor, n_steps: int) -> tuple[Any, Tensor]:
        """Latents `[..., d_sae]` after further steps, and the length `[..., 1]` of each token's next one; `None` is z = 0."""
        residual = x - self.decoder() if latents is None else x - self.decoder(latents)
        for _ in range(n_steps):
            new = shrink_step(latents, self.correlations(residual), length, self.threshold)
            left = x - self.decoder(new)
            if self.config.adaptive_steps:
                known = torch.zeros_like(new) if latents is None else latents
                with torch.no_grad():
                    worse = self._objective(new, left) > self._objective(known, residual)
                    length = self._length(new - known, left - residual).where(~worse, self.step_size)
                new, left = known.where(worse, new), residual.where(worse, left)
            latents, residual = new, left
        return latents, length

    def _objective(self, latents: Tensor, residual: Tensor) -> Tensor:
        """`[..., 1]`: `½‖residual‖² + λ Σ z`."""
        latents, residual = in_full_precision(latents), in_full_precision(residual)
        return 0.5 * residual.square().sum(-1, keepdim=True) + self.threshold * latents.sum(-1, keepdim=True)

    def _length(self, move: Tensor, change: Tensor) -> Tensor:
        """`[..., 1]`: one over the curvature along what a token has just moved, `‖Δz‖² / ‖ΔzW‖²`."""
        move, change = in_full_precision(move).square(), in_full_precision(change).square()
        length = move.sum(-1, keepdim=True) / change.sum(-1, keepdim=True).clamp_min(1e-30)
        return length.clamp(self.step_size, LONGEST * self.step_size)

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """`2 λ Σ z`: with the squared error twice the objective that the steps descend, token by token."""
        latents = dense(result.latents)
        scale = None if result.norm is None else (result.norm[0].new_zeros(()), result.norm[1])
        total = 2 * self.threshold * latents.sum(-1, keepdim=True)
        return {"l1": self.to_output_units(self.to_output_units(total, scale), scale).mean() / result.state.normaliser}

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; λ gets the units of the normalised data."""
        super().initialize_from(x, target, state)
        self.threshold.fill_(self.config.l1_coefficient * math.sqrt(total_variance(self.normalize(x)[0])))

    @torch.no_grad()
    def after_step(self, state: TrainingState, output: SAEOutput) -> None:
        """The step size follows the dictionary, by power iteration from where the last one ended."""
        direction = state.tensors.get("direction")
        norm, direction = gram_norm(self.decoder.weight, direction, FIRST_ROUNDS if direction is None else ROUNDS)
        state.tensors["direction"] = direction
        self.step_size.copy_(MARGIN / norm)


def shrink_step(
    latents: Tensor | None, correlations: Tensor, step_size: Tensor | float, threshold: Tensor | float
) -> Tensor:
    """`ReLU(z + η (c - λ))` in float32 or more, for correlations c of the atoms with what z leaves over; `None` is z = 0."""
    step = step_size * (in_full_precision(correlations) - threshold)
    return torch.relu(step if latents is None else in_full_precision(latents) + step).to(correlations.dtype)


def crate_step(x: Tensor, atoms: Tensor, step_size: float = 0.1, threshold: float = 0.1) -> Tensor:
    """CRATE's ISTA block: `ReLU(x + η Dᵀ (x - D x) - ηλ)`, one step on `½‖x - D z‖² + λ Σ z` from `z = x`. There is no skip around it.

    Args:
        x (`Tensor`): `[..., d]`, tokens after their LayerNorm.
        atoms (`Tensor`): `[d, d]`, Dᵀ: an atom a row.
        step_size (`float`): η; 0.1 in the published models.
        threshold (`float`): λ; 0.1 there, and 0.5 in the encoder of their masked autoencoder.
    """
    return shrink_step(x, (x - x @ atoms) @ atoms.T, step_size, threshold)


@torch.no_grad()
def gram_norm(rows: Tensor, direction: Tensor | None, rounds: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of `W Wᵀ`, approached from below by power iteration, and the direction `[d]` in which it was found.

    Args:
        rows (`Tensor`): W, `[d_sae, d]`.
        direction (`Tensor`, *optional*): to start from; a random one otherwise.
        rounds (`int`): each is two products with W.
    """
    rows = in_full_precision(rows)
    direction = torch.randn_like(rows[0]) if direction is None else direction
    norm = torch.linalg.vector_norm(direction)
    for _ in range(rounds):
        direction = (rows @ (direction / norm.clamp_min(1e-30))) @ rows
        norm = torch.linalg.vector_norm(direction)
    return norm.clamp_min(1e-30), direction / norm.clamp_min(1e-30)
