"""Products with dense latents, sparse where few of the latents are non-zero.

An architecture without a fixed k starts dense and ends sparse. Each product is therefore chosen by what is in the matrix at
that step: a list of its non-zero entries costs one read of it, and a gather for an entry costs as much as a dense product
spends on `_SPARSE_BELOW` zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .kernels import bag_sum
from .row_gradients import RowGradient, Transposed, give, sink_of
from .sparse_ops import dots_of_rows


# entries of a row per non-zero one from which on the list wins: measured on a CPU, and the ratio of compute to memory
# bandwidth of a data-centre GPU (790 TFLOP/s, 4.3 TB/s)
_SPARSE_BELOW = {"cpu": 8, "cuda": 184}


def is_mostly_zero(matrix: Tensor) -> bool:
    """Whether so few entries of `[tokens, d_sae]` are non-zero that listing them is the faster way."""
    share = _SPARSE_BELOW.get(matrix.device.type)
    return share is not None and int(torch.count_nonzero(matrix)) * share < matrix.numel()


def encode(x: Tensor, encoder: tuple[Tensor, Tensor], shift: Tensor | None) -> Tensor:
    """`(x - shift) @ weight.T + bias`, `[tokens, d_sae]`, whose weight gradient is sparse where the gradient that comes is.

    The gradient of `shift` needs no `[tokens, d_in]` product: it is minus (the sum of the gradients) times `weight`.

    Args:
        x (`Tensor`): `[tokens, d_in]`.
        encoder (`tuple`): weight `[d_sae, d_in]` and bias `[d_sae]`.
        shift (`Tensor`, *optional*): `[d_in]`.
    """
    return _Encode.apply(x, *encoder, shift)


def decode(latents: Tensor, weight: Tensor, learns_at_zero: bool = True) -> Tensor:
    """`latents @ weight` for `[tokens, d_sae]`; where few are non-zero, product and weight gradient read those only.

    Args:
        latents (`Tensor`): `[tokens, d_sae]`.
        weight (`Tensor`): `[d_sae, d_out]`.
        learns_at_zero (`bool`): a latent that is zero has a gradient, as one just below its threshold (where it is
            estimated); otherwise gradients of the zeros are zero.
    """
    if not is_mostly_zero(latents.detach()):
        return latents @ weight
    return _Decode.apply(latents, weight, learns_at_zero)


def _entries(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of each non-zero entry, row by row."""
    rows, columns = matrix.nonzero(as_tuple=True)
    return rows, columns, matrix[rows, columns]


def _row_gradient(matrix: Tensor, rows: Tensor) -> RowGradient:
    """`matrix.T @ rows` as factors."""
    tokens, latents, values = _entries(matrix)
    return RowGradient(Transposed(latents, matrix.shape[1], tokens), values, rows)


def _product_dtype(tensor: Tensor) -> torch.dtype:
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None) -> Tensor:
        centred = x if shift is None else x - shift
        ctx.save_for_backward(centred, weight)
        ctx.sink, ctx.product = sink_of(weight), _product_dtype(weight)
        return F.linear(centred, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        needs_x, needs_weight, _, needs_shift = ctx.needs_input_grad
        grad_weight = None
        if needs_weight and is_mostly_zero(grad):
            grad_weight = give(ctx.sink, _row_gradient(grad, centred), weight)
        elif needs_weight:
            grad_weight = (grad.to(ctx.product).T @ centred.to(ctx.product)).to(weight.dtype)
        grad_bias = grad.sum(0, dtype=weight.dtype)
        grad_shift = -(grad_bias @ weight) if needs_shift else None
        grad_x = (grad.to(ctx.product) @ weight.to(ctx.product)).to(weight.dtype) if needs_x else None
        return grad_x, grad_weight, grad_bias, grad_shift


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, weight: Tensor, learns_at_zero: bool) -> Tensor:
        tokens, indices, values = _entries(latents)
        ctx.learns_at_zero, ctx.shape = learns_at_zero, latents.shape
        ctx.sink, ctx.product = sink_of(weight), _product_dtype(weight)
        offsets = F.pad(torch.bincount(tokens, minlength=latents.shape[0]).cumsum(0), (1, 0))
        ctx.save_for_backward(tokens, indices, values, weight, offsets)
        return bag_sum(indices, weight, offsets, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, indices, values, weight, offsets = ctx.saved_tensors
        grad_latents = grad_weight = None
        if ctx.needs_input_grad[0] and ctx.learns_at_zero:
            grad_latents = (grad.to(ctx.product) @ weight.to(ctx.product).T).to(values.dtype)
        elif ctx.needs_input_grad[0]:
            products = dots_of_rows(grad, indices, offsets, weight).to(values.dtype)
            grad_latents = products.new_zeros(ctx.shape).index_put_((tokens, indices), products)
        if ctx.needs_input_grad[1]:
            transposed = Transposed(indices, weight.shape[0], tokens)
            grad_weight = give(ctx.sink, RowGradient(transposed, values, grad.contiguous()), weight)
        return grad_latents, grad_weight, None
