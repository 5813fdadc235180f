"""Sparse decode and gradients with public torch operations, on any device.

With k of n latents active, the decoder, the gradient of the latents and both weight gradients need k/n of the work
of a dense product. Each is one `embedding_bag`:

* decode: row t is the sum of k decoder rows;
* d(values): the per-sample-weight gradient of that sum;
* weight gradients: the same sum over the *transposed* list, where latent f is the bag and its tokens are the rows.

Dtypes are cast explicitly, since `embedding_bag` refuses mixed ones under autocast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .dictionary import WholeDictionary
from .kernels import bag_sum, kernels_for
from .row_gradients import RowGradient, SomeRows, Transposed, give, sink_of
from .screening import can_screen, screened_top_k
from .triton_top_k import encode_top_k as triton_encode_top_k
from .triton_top_k import top_k as triton_top_k


_GROUP = 4  # latents per group of the tournament; measured, 2 and 8 are slower


@torch.no_grad()
def top_k(pre_activations: Tensor, k: int) -> Tensor:
    """`[..., k]`: the latents with the `k` largest values of `[..., d_sae]`, in no particular order.

    Exact, as a tournament: a value among the k largest lies in one of the k groups with the largest maxima, so only those
    groups are searched; and the maxima are searched in the same way. Which of equal values are taken is not defined, as
    in `Tensor.topk`.
    """
    d_sae = pre_activations.shape[-1]
    if kernels_for(pre_activations):
        return triton_top_k(pre_activations.reshape(-1, d_sae), k).view(*pre_activations.shape[:-1], k)
    if d_sae % _GROUP or d_sae < 2 * _GROUP * k:  # groups would save nothing
        return pre_activations.topk(k, dim=-1, sorted=False).indices
    n_groups = d_sae // _GROUP
    # a group is every n_groups-th latent: maxima over contiguous groups would be many times slower
    groups = top_k(pre_activations.unflatten(-1, (_GROUP, n_groups)).amax(-2), k)
    members = torch.arange(0, d_sae, n_groups, device=groups.device)
    candidates = (groups.unsqueeze(-2) + members.unsqueeze(-1)).flatten(-2)
    best = pre_activations.gather(-1, candidates).topk(k, dim=-1, sorted=False).indices
    return candidates.gather(-1, best)


def decode(values: Tensor, indices: Tensor, weight: Tensor, transposed: Transposed | None = None) -> Tensor:
    """`[tokens, d_out]`: the sum of `values[t, j] * weight[indices[t, j]]` over j.

    Args:
        values (`Tensor`): `[tokens, k]`.
        indices (`Tensor`): `[tokens, k]`.
        weight (`Tensor`): `[d_sae, d_out]`, a latent a row.
        transposed ([`Transposed`], *optional*): of `indices`, where it is shared with other gradients.
    """
    return _Decode.apply(values, indices, weight, transposed or Transposed(indices, weight.shape[0]))


def settle(values: Tensor, rectify: bool = True) -> Tensor:
    """What [`WholeDictionary.choose`] gave, `[..., k]`, as latents: rectified or not, and zero where nothing was chosen."""
    return torch.relu(values) if rectify else values.masked_fill(values == -torch.inf, 0)


def dots(rows: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """`[tokens, k]`: the scalar products of `rows[t]` `[tokens, d]` and `weight[indices[t, j]]`."""
    if kernels := kernels_for(rows):
        return kernels.dots(rows, indices, weight)
    n_tokens, k = indices.shape
    starts = torch.arange(0, n_tokens * k + 1, max(k, 1), device=indices.device)
    return dots_of_rows(rows, indices.reshape(-1), starts[: n_tokens + 1], weight).view(n_tokens, k)


def dots_of_rows(rows: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """`[nnz]`: [`dots`] for compressed rows; `indices` `[nnz]`, `offsets` `[tokens + 1]`."""
    if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64) and indices.numel():
        # a product sampled at the code's places; the constructor warns that compressed tensors are in beta
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            places = torch.sparse_csr_tensor(
                offsets,
                indices,
                rows.new_zeros(len(indices)),
                (rows.shape[0], weight.shape[0]),
                check_invariants=False,
            )
            products = torch.sparse.sampled_addmm(places, rows, weight.detach().to(rows.dtype).T, beta=0.0)
        return products.values().to(weight.dtype)
    ones = torch.ones(len(indices), dtype=weight.dtype, device=weight.device, requires_grad=True)
    with torch.enable_grad():  # the derivative of a bag by its weights is these products, without a [nnz, d] tensor
        total = bag_sum(indices, weight.detach(), offsets, ones)
    return torch.autograd.grad(total, ones, rows.to(weight.dtype))[0]


def squared_error(
    values: Tensor,
    indices: Tensor,
    decoder: tuple[Tensor, Tensor],
    target: Tensor,
    transposed: Transposed | None = None,
    dictionary: WholeDictionary | None = None,
) -> tuple[Tensor, Tensor]:
    """`Σ_d (target - bias - decode(values, indices, weight))²` for each token, `[tokens]`, and the error `[tokens, d_out]`.

    The gradient of a squared error needs the decoder rows a second time only for their products with that error, so one
    read of them serves both (on a GPU). The error is outside the graph.

    Args:
        decoder (`tuple`): weight `[d_sae, d_out]` and bias `[d_out]`.
        dictionary ([`WholeDictionary`], *optional*): where other parts of the sum come from.
    """
    weight, bias = decoder
    transposed = transposed or Transposed(indices, weight.shape[0])
    return _SquaredError.apply(values, indices, weight, bias, target, transposed, dictionary or WholeDictionary())


def select_rows(weight: Tensor, index: Tensor) -> Tensor:
    """`weight[index]`, with a gradient that touches those rows only; `index` ascending."""
    return _SelectRows.apply(weight, index)


def _decode(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    if kernels := kernels_for(weight):
        return kernels.decode(values, indices, weight)
    return F.embedding_bag(indices, weight, per_sample_weights=values.to(weight.dtype), mode="sum")


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, indices, weight, transposed):
        ctx.save_for_backward(values, indices, weight)
        ctx.transposed, ctx.sink = transposed, sink_of(weight)
        return _decode(values, indices, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, indices, weight = ctx.saved_tensors
        grad, grad_values, grad_weight = grad.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            grad_values = dots(grad, indices, weight).to(values.dtype)
        if ctx.needs_input_grad[2]:
            grad_weight = give(ctx.sink, RowGradient(ctx.transposed, values, grad), weight)
        return grad_values, None, grad_weight, None


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, indices, weight, bias, target, transposed, dictionary):
        ctx.products = None
        centred = target - bias
        if dictionary.whole and (kernels := kernels_for(weight)) and any(ctx.needs_input_grad):
            error, ctx.products = kernels.error_and_dots(values, indices, weight, centred)
        else:
            error = centred.sub_(dictionary.sum(_decode(values, indices, weight)))
        ctx.save_for_backward(values, indices, weight, error)
        ctx.transposed, ctx.sink = transposed, sink_of(weight)
        ctx.mark_non_differentiable(error)
        # not vecdot: under autocast it would round to bfloat16
        return torch.linalg.vector_norm(error, dim=-1).square(), error

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        values, indices, weight, error = ctx.saved_tensors
        needs_values, _, needs_weight, needs_bias, needs_target, *_ = ctx.needs_input_grad
        scale = -2 * grad  # the factor goes to the values: [tokens, k] is smaller than [tokens, d_out]
        grad_values = grad_weight = None
        if needs_values:
            products = dots(error, indices, weight) if ctx.products is None else ctx.products
            grad_values = (products * scale.unsqueeze(1)).to(values.dtype)
        if needs_weight:
            grad_weight = give(ctx.sink, RowGradient(ctx.transposed, values * scale.unsqueeze(1), error), weight)
        grad_bias = scale @ error if needs_bias else None
        grad_target = error * -scale.unsqueeze(1) if needs_target else None
        return grad_values, None, grad_weight, grad_bias, grad_target, None, None


class _SelectRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, index):
        ctx.save_for_backward(weight, index)
        ctx.sink = sink_of(weight)
        return weight.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, index = ctx.saved_tensors
        return give(ctx.sink, SomeRows(index, grad), weight), None


def select_pre_activations(
    x: Tensor,
    encoder: tuple[Tensor, Tensor],
    shift: Tensor | None,
    k: int,
    dictionary: WholeDictionary | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Transposed]:
    """The `k` largest of `(x - shift) @ weight.T + bias` for each token, with gradients that touch the selected rows only.

    The gradient of `shift` needs no `[tokens, d_in]` product: it is minus (the sum of the gradients) times `weight`.

    Args:
        x (`Tensor`): `[tokens, d_in]`.
        encoder (`tuple`): weight `[d_sae, d_in]` and bias `[d_sae]`.
        shift (`Tensor`, *optional*): `[d_in]`.
        k (`int`): how many.
        dictionary ([`WholeDictionary`], *optional*): of which the encoder has a part, where it has not all.
        score (`Callable`, *optional*): what latents are ranked by instead, from all pre-activations `[tokens, d_sae]`.

    Returns:
        Values and indices `[tokens, k]` (see [`WholeDictionary.choose`]), and the transpose of the indices.
    """
    weight, bias = encoder
    with torch.no_grad():
        centred, scores = x if shift is None else x - shift, None
        if score is None:
            values, indices = encode_top_k(centred, weight, bias, min(k, weight.shape[0]))
        else:
            pre_activations = F.linear(centred, weight, bias)
            ranked = score(pre_activations)
            indices = top_k(ranked, min(k, weight.shape[0]))
            values, scores = pre_activations.gather(-1, indices), ranked.gather(-1, indices)
        values, indices = (dictionary or WholeDictionary()).choose(values, indices, k, scores)
    transposed = Transposed(indices, weight.shape[0])
    return _Selected.apply(x, weight, bias, shift, centred, values, transposed), indices, transposed


def chosen_products(x: Tensor, weight: Tensor, values: Tensor, transposed: Transposed) -> Tensor:
    """`[tokens, k]`: products `x @ weight.T` that are known for chosen latents, with gradients that touch their rows only.

    Args:
        x (`Tensor`): `[tokens, d_in]`.
        weight (`Tensor`): `[d_sae, d_in]`.
        values (`Tensor`): `[tokens, k]`, the products.
        transposed ([`Transposed`]): of the chosen latents' indices `[tokens, k]`.
    """
    return _Selected.apply(x, weight, None, None, x.detach(), values, transposed)


@torch.no_grad()
def encode_top_k(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices `[tokens, k]` of the `k` largest of `x @ weight.T + bias`, in the precision of autocast.

    In float32 on a processor with bfloat16 products the result is the same, for less time (`screening`).
    """
    if kernels_for(x):
        kind = x.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return triton_encode_top_k(x, weight.to(cast), bias, k)
    if can_screen(x, weight, k):
        return screened_top_k(x, (weight, bias), k, top_k, dots)
    pre_activations = F.linear(x, weight, bias)
    indices = top_k(pre_activations, k)
    return pre_activations.gather(-1, indices), indices


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, shift, centred, values, transposed):
        ctx.save_for_backward(centred, weight)
        ctx.transposed, ctx.sink = transposed, sink_of(weight)
        return values.to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        centred, weight = ctx.saved_tensors
        needs_x, _, needs_bias, needs_shift, *_ = ctx.needs_input_grad
        transposed, grad = ctx.transposed, grad.contiguous()
        grad_bias = transposed.sum_values(grad) if needs_bias or needs_shift else None
        grad_weight = give(ctx.sink, RowGradient(transposed, grad, centred.to(grad.dtype)), weight)
        grad_shift = -(grad_bias @ weight) if needs_shift else None
        grad_x = _decode(grad, transposed.indices, weight) if needs_x else None
        return grad_x, grad_weight, grad_bias if needs_bias else None, grad_shift, None, None, None
