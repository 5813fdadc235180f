"""Sparse decode and gradients with public torch operations, on any device.

With k of n latents active, the decoder, the gradient of the latents and both weight gradients need k/n of the work
of a dense product. Each is one `embedding_bag`:

* decode: row t is the sum of k decoder rows;
* d(values): the per-sample-weight gradient of that sum;
* weight gradients: the same sum over the *transposed* list, where latent f is the bag and its tokens are the rows.

Dtypes are cast explicitly, since `embedding_bag` refuses mixed ones under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Transposed:
    """Which tokens each latent fires on: the transpose of `[tokens, k]` indices."""

    def __init__(self, indices: Tensor, d_sae: int) -> None:
        flat = indices.reshape(-1)
        # stable: the order of the sum, and so its rounding, depends on nothing but the indices
        by_latent, self.order = flat.sort(stable=True)
        self.tokens = self.order // indices.shape[-1]
        bounds = torch.arange(d_sae + 1, device=flat.device, dtype=flat.dtype)
        self.offsets = torch.searchsorted(by_latent, bounds)

    def sum_rows(self, weights: Tensor, rows: Tensor) -> Tensor:
        """`[d_sae, d]`: for each latent the sum over its tokens t of `weights[t, j] * rows[t]`."""
        return F.embedding_bag(
            self.tokens,
            rows,
            self.offsets,
            per_sample_weights=weights.reshape(-1)[self.order].to(rows.dtype),
            mode="sum",
            include_last_offset=True,
        )


@torch.no_grad()
def top_k(pre_activations: Tensor, k: int) -> Tensor:
    """`[..., k]`: the latents with the `k` largest values of `[..., d_sae]`, in no particular order.

    Exact, in two stages: a value among the k largest lies in one of the k groups with the largest maxima, so only those
    groups are searched. Which of equal values are taken is not defined, as in `Tensor.topk`.
    """
    d_sae = pre_activations.shape[-1]
    size = _group_size(d_sae, k)
    if size == 1:
        return pre_activations.topk(k, dim=-1, sorted=False).indices
    n_groups = d_sae // size
    # a group is every n_groups-th latent: maxima over contiguous groups would be many times slower
    maxima = pre_activations.unflatten(-1, (size, n_groups)).amax(-2)
    groups = maxima.topk(k, dim=-1, sorted=False).indices
    members = torch.arange(0, d_sae, n_groups, device=groups.device)
    candidates = (groups.unsqueeze(-2) + members.unsqueeze(-1)).flatten(-2)
    best = pre_activations.gather(-1, candidates).topk(k, dim=-1, sorted=False).indices
    return candidates.gather(-1, best)


def _group_size(d_sae: int, k: int) -> int:
    # d_sae / size maxima and k * size candidates: fewest in all near sqrt(d_sae / k)
    size = 1
    while 4 * size * size * k <= d_sae and d_sae % (2 * size) == 0:
        size *= 2
    return size


def decode(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """`[tokens, d_out]`: the sum of `values[t, j] * weight[indices[t, j]]` over j.

    Args:
        values (`Tensor`): `[tokens, k]`.
        indices (`Tensor`): `[tokens, k]`.
        weight (`Tensor`): `[d_sae, d_out]`, a latent a row.
    """
    out = F.embedding_bag(indices, weight.detach(), per_sample_weights=values.to(weight.dtype), mode="sum")
    if not weight.requires_grad or not torch.is_grad_enabled():
        return out
    return _WithWeightGradient.apply(out, weight, indices, values.detach())


def decode_rows(values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """`[rows, d_out]`: [`decode`] for compressed rows; `values`, `indices` `[nnz]`, `offsets` `[rows + 1]`."""
    return F.embedding_bag(
        indices, weight, offsets, per_sample_weights=values.to(weight.dtype), mode="sum", include_last_offset=True
    )


class _WithWeightGradient(torch.autograd.Function):
    """Identity on a sparse reconstruction whose backward adds the gradient of the decoder weight."""

    @staticmethod
    def forward(ctx, out, weight, indices, values):
        ctx.save_for_backward(indices, values)
        ctx.d_sae, ctx.dtype = weight.shape[0], weight.dtype
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        indices, values = ctx.saved_tensors
        grad_weight = Transposed(indices, ctx.d_sae).sum_rows(values, grad.contiguous())
        return grad, grad_weight.to(ctx.dtype), None, None


class SelectedPreActivations(torch.autograd.Function):
    """The pre-activations that were selected, with gradients that touch the selected rows only.

    `apply(x, weight, bias, shift, pre_activations, indices)` returns `pre_activations` gathered at
    `indices`, `[tokens, k]`, where `pre_activations = (x - shift) @ weight.T + bias` was computed without a graph.
    The gradient of `shift` needs no `[tokens, d_in]` product: it is minus (the sum of the gradients) times `weight`.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, shift, pre_activations, indices):
        ctx.save_for_backward(x, weight, shift, indices)
        return pre_activations.gather(-1, indices).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, shift, indices = ctx.saved_tensors
        needs_x, _, _, needs_shift = ctx.needs_input_grad[:4]
        grad = grad.contiguous()
        transposed = Transposed(indices, weight.shape[0])
        # index_add_ would be shorter, but it sums in an arbitrary order on a GPU
        grad_bias = transposed.sum_rows(grad, grad.new_ones(grad.shape[0], 1)).squeeze(1)
        centred = x if shift is None else x - shift
        grad_weight = transposed.sum_rows(grad, centred.to(grad.dtype))
        grad_shift = -(grad_bias @ weight) if needs_shift else None
        grad_x = F.embedding_bag(indices, weight, per_sample_weights=grad, mode="sum") if needs_x else None
        return grad_x, grad_weight, grad_bias, grad_shift, None, None
