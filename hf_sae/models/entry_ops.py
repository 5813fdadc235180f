"""Products with a list of entries: codes in compressed rows, of which each token may have as many as it likes.

`sparse_ops` for selections that couple tokens: the encoder's product is computed without a graph, some of its entries are
chosen, and only those have gradients. A step costs one dense product; all else reads as many rows as there are entries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .dictionary import WholeDictionary
from .kernels import bag_sum
from .row_gradients import RowGradient, Transposed, give, sink_of
from .sparse_ops import dots_of_rows


Choice = Callable[[Tensor], Tensor]  # positions, ascending, in a flattened [tokens, d_sae]


def compressed(positions: Tensor, n_tokens: int, d_sae: int) -> tuple[Tensor, Tensor, Transposed]:
    """Latents `[entries]`, row starts `[n_tokens + 1]` and the transpose of a list of entries.

    Args:
        positions (`Tensor`): `[entries]`, ascending, in a flattened `[n_tokens, d_sae]`.
    """
    tokens = torch.div(positions, d_sae, rounding_mode="floor")
    indices = positions - tokens * d_sae
    return indices, row_starts(tokens, n_tokens), Transposed(indices, d_sae, tokens)


def row_starts(rows: Tensor, n_rows: int) -> Tensor:
    """`[n_rows + 1]`: where the entries of each row begin, from the row of each entry, `[entries]`, ascending."""
    return F.pad(torch.bincount(rows, minlength=n_rows).cumsum(0), (1, 0))


def select_entries(
    x: Tensor, encoder: tuple[Tensor, Tensor], shift: Tensor | None, choose: Choice
) -> tuple[Tensor, tuple[Tensor, Tensor, Transposed]]:
    """Chosen entries of `(x - shift) @ weight.T + bias`, with gradients that touch their rows only.

    Args:
        x (`Tensor`): `[tokens, d_in]`.
        encoder (`tuple`): weight `[d_sae, d_in]` and bias `[d_sae]`.
        shift (`Tensor`, *optional*): `[d_in]`.
        choose (`Callable`): from pre-activations `[tokens, d_sae]` to ascending positions in them, flattened.

    Returns:
        Values `[entries]`, and their places as [`compressed`] gives them.
    """
    weight, bias = encoder
    with torch.no_grad():
        centred = x if shift is None else x - shift
        pre = F.linear(centred, weight, bias)
        positions = choose(pre)
        values, places = pre.view(-1)[positions], compressed(positions, *pre.shape)
    return _Selected.apply(x, weight, bias, shift, centred, values, *places), places


def decode_entries(
    values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor, transposed: Transposed | None = None
) -> Tensor:
    """`[rows, d_out]`: for each row the sum of `values[i] * weight[indices[i]]` over its entries.

    Args:
        values (`Tensor`), indices (`Tensor`): `[entries]`.
        offsets (`Tensor`): `[rows + 1]`.
        weight (`Tensor`): `[d_sae, d_out]`, a latent a row.
        transposed ([`Transposed`], *optional*): of the entries, where it is shared with other gradients.
    """
    return _Decode.apply(values, indices, offsets, weight, transposed)


def squared_error_of_entries(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    decoder: tuple[Tensor, Tensor],
    target: Tensor,
    transposed: Transposed | None = None,
    dictionary: WholeDictionary | None = None,
) -> tuple[Tensor, Tensor]:
    """`sparse_ops.squared_error` for compressed rows: `[tokens]`, and the error `[tokens, d_out]` outside the graph."""
    weight, bias = decoder
    dictionary = dictionary or WholeDictionary()
    return _SquaredError.apply(values, indices, offsets, weight, bias, target, transposed, dictionary)


def _transpose(indices: Tensor, offsets: Tensor, d_sae: int) -> Transposed:
    rows = torch.arange(len(offsets) - 1, device=indices.device)
    return Transposed(indices, d_sae, rows.repeat_interleave(offsets.diff()))


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, shift, centred, values, indices, offsets, transposed):
        ctx.save_for_backward(centred, weight, indices, offsets)
        ctx.transposed, ctx.sink = transposed, sink_of(weight)
        return values.to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        centred, weight, indices, offsets = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_shift, *_ = ctx.needs_input_grad
        grad, grad_x, grad_weight, grad_bias, grad_shift = grad.contiguous(), None, None, None, None
        if needs_weight:
            grad_weight = give(ctx.sink, RowGradient(ctx.transposed, grad, centred.to(grad.dtype)), weight)
        if needs_bias or needs_shift:
            grad_bias = ctx.transposed.sum_values(grad)
        if needs_shift:
            grad_shift = -(grad_bias @ weight)
        if needs_x:
            grad_x = bag_sum(indices, weight, offsets, grad)
        return grad_x, grad_weight, grad_bias if needs_bias else None, grad_shift, *(None,) * 5


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, indices, offsets, weight, transposed):
        ctx.save_for_backward(values, indices, offsets, weight)
        ctx.transposed, ctx.sink = transposed, sink_of(weight)
        return bag_sum(indices, weight, offsets, values.to(weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, indices, offsets, weight = ctx.saved_tensors
        grad, grad_values, grad_weight = grad.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            grad_values = dots_of_rows(grad, indices, offsets, weight).to(values.dtype)
        if ctx.needs_input_grad[3]:
            transposed = ctx.transposed or _transpose(indices, offsets, weight.shape[0])
            grad_weight = give(ctx.sink, RowGradient(transposed, values, grad), weight)
        return grad_values, None, None, grad_weight, None


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, indices, offsets, weight, bias, target, transposed, dictionary):
        decoded = dictionary.sum(bag_sum(indices, weight, offsets, values.to(weight.dtype)))
        error = (target - bias).sub_(decoded)
        ctx.save_for_backward(values, indices, offsets, weight, error)
        ctx.transposed, ctx.sink = transposed, sink_of(weight)
        ctx.mark_non_differentiable(error)
        # not vecdot: under autocast it would round to bfloat16
        return torch.linalg.vector_norm(error, dim=-1).square(), error

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        values, indices, offsets, weight, error = ctx.saved_tensors
        needs_values, _, _, needs_weight, needs_bias, needs_target, *_ = ctx.needs_input_grad
        scale = -2 * grad
        scales = scale.repeat_interleave(offsets.diff())  # of the entries' tokens
        grad_values = grad_weight = None
        if needs_values:
            grad_values = (dots_of_rows(error, indices, offsets, weight) * scales).to(values.dtype)
        if needs_weight:
            transposed = ctx.transposed or _transpose(indices, offsets, weight.shape[0])
            grad_weight = give(ctx.sink, RowGradient(transposed, values * scales, error), weight)
        grad_bias = scale @ error if needs_bias else None
        grad_target = error * -scale.unsqueeze(1) if needs_target else None
        return grad_values, None, None, grad_weight, grad_bias, grad_target, None, None
