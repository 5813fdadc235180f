"""MP-SAE: the encoder is a matching pursuit, each pick conditioned on what is explained already.

Costa et al. 2025, "From flat to hierarchical: extracting sparse representations with matching pursuit" (arXiv 2506.03093). One
dictionary W of unit rows reads and writes. From `r = x - b_dec`, k times: `i = argmax_j w_j·r`, `v = ReLU(w_i·r)`,
`z_i += v`, `r -= v w_i`; the loss is `‖r‖²`. Gradients flow through v and w_i, not through the argmax. Each pick takes `v²` off `‖r‖²`.
The saved model does the same at inference, with `k_inference` steps where that is given: more steps only lower the error.

* A latent that is picked again is listed once in the code, with the sum of its amounts.
* Backward runs the steps in reverse and recomputes each residual from the next: no `[tokens, k, d]` tensor is kept.

Deviations: `tolerance` is relative to `‖x - b_dec‖`. With `rectify=False` the pick is by magnitude, as in Mallat & Zhang 1993. A
pick that is repeated does not end the pursuit, as it does in published code: the error can still fall.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .configuration_sae import SAEConfig, require_between, strict_config
from .modeling_sae import SAE, Norm
from .outputs import TrainingState
from .pursuit import in_full_precision, matching_pursuit, merge
from .row_gradients import Transposed
from .sparse_code import SparseCode
from .sparse_ops import decode
from .tied import Tied, require_shared_bias


@strict_config
class MatchingPursuitConfig(SAEConfig):
    """[`SAEConfig`] plus the number of steps.

    Args:
        k (`int`): steps of the pursuit, and so latents per token at most.
        k_inference (`int`, *optional*): steps of the trained model, more or fewer; `None` is `k`.
        tolerance (`float`): a token is done when its residual is no longer than this share of it, before bias.
        rectify (`bool`): only positive amounts; otherwise latents have signs.
    """

    model_type = "hf_sae_matching_pursuit"
    tied = True

    k: int = 32
    k_inference: int | None = None
    tolerance: float | int = 0.0
    rectify: bool = True

    def validate_pursuit(self) -> None:
        """Steps lie between 1 and `d_sae`, the tolerance is a share, and the bias is subtracted."""
        require_between(self, 1, self.d_sae, "k", "k_inference")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance} must be 0 or more, and below 1.")
        require_shared_bias(self)


class _Amounts(torch.autograd.Function):
    """`v_t = w_t·r_t` of given picks, with `r_{t+1} = r_t - v_t w_t`; amounts of 0 were cut off and stay 0."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, atoms: Tensor, picks: Tensor, amounts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, atoms, picks, amounts)
        return amounts.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With `λ_t = ∂L/∂v_t - w_t·q_t` and `q_{t-1} = q_t + λ_t w_t` from the last step to the first: `∂L/∂w_t = λ_t r_t - v_t q_t`,
        `∂L/∂x = q_0`."""
        rows, atoms, picks, amounts = ctx.saved_tensors
        residual, after = rows - decode(amounts, picks, atoms), torch.zeros_like(rows)
        grad, grad_atoms = grad * (amounts != 0), torch.zeros_like(atoms)
        for step in reversed(range(picks.shape[1])):
            pick, amount = picks[:, step], amounts[:, step, None]
            atom = atoms[pick]
            residual = residual + amount * atom
            slope = (grad[:, step] - (atom * after).sum(-1)).unsqueeze(1) * (amount != 0)
            grad_atoms.index_add_(0, pick, slope * residual - amount * after)
            after = after + slope * atom
        return after, grad_atoms, None, None


class MatchingPursuitSAE(Tied, SAE):
    """A tied autoencoder whose latents are the amounts of a matching pursuit."""

    config: MatchingPursuitConfig
    paper: ClassVar[str] = "Costa et al. 2025, From flat to hierarchical, arXiv:2506.03093"

    def __init__(self, config: MatchingPursuitConfig) -> None:
        super().__init__(config)
        self.post_init()

    def latents_of(self, x: Tensor, norm: Norm | None, state: TrainingState | None = None) -> tuple[SparseCode, None]:
        """A fixed-k code; `k_inference` steps outside training."""
        config, d_sae = self.config, self.config.d_sae
        steps = config.k if state is not None or self.training else config.k_inference or config.k
        rows = in_full_precision(x - self.decoder()).reshape(-1, x.shape[-1])
        atoms = in_full_precision(self.decoder.weight)
        amounts, picks = matching_pursuit(rows, atoms, steps, not config.rectify, config.tolerance)
        if torch.is_grad_enabled():
            amounts = _Amounts.apply(rows, atoms, picks, amounts)
        values, indices = merge(amounts, picks, d_sae)
        transposed = Transposed(indices, d_sae) if torch.is_grad_enabled() else None
        shape = (*x.shape[:-1], steps)
        values = values.to(self.decoder.weight.dtype).view(shape)
        return SparseCode(values, indices.view(shape), None, d_sae, norm, transposed=transposed), None
