"""HierarchicalTopK: one TopK model that is good with every number of latents up to its largest.

Balagansky et al. 2025, "Train One Sparse Autoencoder Across Multiple Sparsity Budgets to Preserve Interpretability and
Accuracy" (arXiv 2505.24473): with `x̂_j` the reconstruction from the j largest latents of a token, the loss is the mean of
`‖x - x̂_j‖²` over j = 1 … k (the paper, read second-hand, also allows some of them only). What the saved model does at inference is
TopK with `k_inference` latents; `with_k` gives the same weights another one.

All k errors of a token are prefixes of one sum: `e_j = e_{j-1} - z_j w_j`. They are walked through one latent after the other, forwards
for the errors and backwards for the exact gradient (`-2 z_j Σ_{i >= j} e_i` for `w_j`, and its product with `w_j` in place of
`z_j` for `z_j`), so that memory is that of one error. AuxK as in TopK is ours; whether the authors use it was not found.
"""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .configuration_sae import SAEConfig, require_between, strict_config
from .modeling_sae import SAE, Norm
from .modeling_topk import auxk, largest, require_auxk, select_top_k, shorten_encoder_rows
from .outputs import Pass, TrainingState
from .sparse_code import SparseCode


@strict_config
class HierarchicalTopKConfig(SAEConfig):
    """[`SAEConfig`] plus the numbers of active latents.

    Args:
        k (`int`): most latents per token; the loss is a mean over 1 to `k` of them.
        k_inference (`int`, *optional*): latents per token of the saved model; `None` is `k`.
        aux_coefficient (`float`): weight of the AuxK loss. 0 switches it off.
        k_aux (`int`, *optional*): dead latents per token in AuxK; `None` is `d_out / 2`.
    """

    model_type = "hf_sae_hierarchical_topk"

    k: int = 32
    k_inference: int | None = None
    aux_coefficient: float | int = 1 / 32
    k_aux: int | None = None

    def validate_k(self) -> None:
        """Every count of latents lies between 1 and `d_sae`, that of inference at most at `k`."""
        require_between(self, 1, self.d_sae, "k")
        require_between(self, 1, self.k, "k_inference")
        require_auxk(self)


class HierarchicalTopKSAE(SAE):
    """A TopK autoencoder whose latents are worth most in their order."""

    config: HierarchicalTopKConfig
    paper: ClassVar[str] = (
        "Balagansky et al. 2025, Train one sparse autoencoder across multiple sparsity budgets, arXiv:2505.24473"
    )

    def __init__(self, config: HierarchicalTopKConfig) -> None:
        super().__init__(config)
        self.post_init()

    def with_k(self, k: int) -> "HierarchicalTopKSAE":
        """The same weights (not a copy of them) with `k` latents per token at inference.

        Raises:
            ConfigError: for fewer than 1, or more than it was trained for.
        """
        other: Any = copy.copy(self)
        other.config = self.config.replace(k_inference=k)
        return other

    def activate(self, pre_activations: Tensor) -> Tensor:
        """Dense latents of the `config.k_inference` largest pre-activations."""
        return largest(self, pre_activations, self.config.k_inference or self.config.k, None).to_dense()

    def latents_of(
        self, x: Tensor, norm: Norm | None, state: TrainingState | None = None
    ) -> tuple[SparseCode, Tensor | None]:
        """A fixed-k code: of `k` latents in training, of `k_inference` otherwise."""
        training = state is not None or self.training
        k = self.config.k if training else self.config.k_inference or self.config.k
        return select_top_k(self, x, k, norm)

    @property
    def reconstruction_weight(self) -> float:
        """`1 / k`: the whole code's error is one of k in the mean."""
        return 1 / self.config.k

    def penalties(self, result: Pass) -> dict[str, Tensor]:
        """The rest of the mean: the errors with 1 to `k - 1` latents; and AuxK."""
        squares = self.squared_errors(result)[..., : self.config.k - 1]
        fewer = squares.sum(-1).mean() / (self.config.k * result.state.normaliser)
        return {"fewer_latents": fewer} | auxk(self, result)

    def squared_errors(self, result: Pass) -> Tensor:
        """`[..., k]`: the squared error of each token with its 1, 2, … k largest latents, in the target's units."""
        latents = result.latents
        code = latents if isinstance(latents, SparseCode) else SparseCode.from_dense(latents)
        values, order = code.values.sort(dim=-1, descending=True)
        base = self.to_output_units(self.decoder(), result.norm)  # what a code of zeros decodes to
        if result.norm is not None and self.config.undoes_norm_per_token:
            base = base + result.norm[0]
        if self.skip is not None:
            base = base + self.skip(result.x)
        values, indices = self.to_output_units(values, result.norm), code.indices.gather(-1, order)
        k, d_out = values.shape[-1], self.decoder.weight.shape[1]
        rows = (result.target - base).reshape(-1, d_out)
        squares = _PrefixErrors.apply(rows, values.reshape(-1, k), indices.reshape(-1, k), self.decoder.weight)
        return squares.view(values.shape)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, target: Tensor, state: TrainingState) -> None:
        """As in [`SAE`]; then encoder rows are shortened until the first reconstructions have the right length."""
        super().initialize_from(x, target, state)
        shorten_encoder_rows(self, x)


class _PrefixErrors(torch.autograd.Function):
    """`[tokens, k]`: `‖start - Σ_{i <= j} values_i weight[indices_i]‖²` for j = 1 … k.

    Errors are summed up in float32 at least, and walked back in the backward pass rather than kept.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(start.dtype, torch.float32)
        error, squares = start.to(wide, copy=True), []
        for j in range(values.shape[1]):
            error.sub_(_scaled_rows(values, indices, weight, j, wide))
            squares.append(error.square().sum(-1))
        ctx.save_for_backward(values, indices, weight, error)
        ctx.start_dtype = start.dtype
        return torch.stack(squares, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, weight, error = ctx.saved_tensors
        error = error.clone()
        total = torch.zeros_like(error)  # the weighted sum of the errors from j on
        grad_values, grad_weight = torch.zeros_like(values), None
        if ctx.needs_input_grad[3]:
            grad_weight = torch.zeros_like(weight, dtype=error.dtype)
        for j in reversed(range(values.shape[1])):
            total.addcmul_(error, grad[:, j : j + 1].to(error.dtype))
            rows = weight[indices[:, j]].to(error.dtype)
            value = values[:, j : j + 1].to(error.dtype)
            grad_values[:, j] = (-2 * (total * rows).sum(-1)).to(values.dtype)
            if grad_weight is not None:
                grad_weight.index_add_(0, indices[:, j], total * value, alpha=-2)
            error.addcmul_(rows, value)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return (2 * total).to(ctx.start_dtype), grad_values, None, grad_weight


def _scaled_rows(values: Tensor, indices: Tensor, weight: Tensor, j: int, dtype: torch.dtype) -> Tensor:
    return weight[indices[:, j]].to(dtype) * values[:, j : j + 1].to(dtype)
