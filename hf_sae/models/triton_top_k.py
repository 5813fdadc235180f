"""Encoder and top-k without a `[tokens, d_sae]` tensor: a chunk of latents at a time, merged into the best k so far.

The product of a chunk is torch's (cuBLAS) and goes to one scratch that every chunk uses again. A merge reads it once and touches
the state of those rows only that found something better: 4 N F bytes through the L2 cache, and N k (1 + ln(chunks)) insertions.
As in [`triton_ops`], ask `available` first; nothing here records a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .triton_ops import FUSED, on_device_of, power_of_two


SCRATCH_BYTES = 32 * 2**20  # pre-activations in flight: they should stay in the L2 cache (50 MB on an H100)
MIN_CHUNK = 512  # latents: fewer are too few columns for a fast product
ROWS_AT_A_TIME = 16384
INSERTION_K = 1024  # above it, one insertion at a time is slower than `torch.topk` of best and chunk


@torch.no_grad()
def encode_top_k(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest pre-activations of each token, with memory for a chunk of latents only.

    Exact as a set of values; among equal values the lowest latents are taken where k is at most 1024. In half precision the
    product is kept in float32 (from torch 2.8 on; before that it is rounded to the dtype of `weight` before the bias is added).

    Args:
        x (`Tensor`): `[tokens, d_in]`, cast to the dtype of `weight`.
        weight (`Tensor`): `[d_sae, d_in]`, a latent a row.
        bias (`Tensor`, *optional*): `[d_sae]`.
        k (`int`): at most `d_sae`.

    Returns:
        Values, float32 `[tokens, k]`, and latents, int64 `[tokens, k]`, in no particular order.

    Raises:
        ValueError: if the shapes do not agree or `k` is not between 1 and `d_sae`.
    """
    if x.shape[1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        given = f"x {list(x.shape)}, weight {list(weight.shape)}, bias {None if bias is None else list(bias.shape)}"
        raise ValueError(f"Expected x [tokens, d_in], weight [d_sae, d_in], bias [d_sae]; got {given}.")
    _check_k(k, weight.shape[0])
    n, d_sae = x.shape[0], weight.shape[0]
    values = x.new_empty(n, k, dtype=torch.float32)
    indices = torch.empty(n, k, dtype=torch.int64, device=x.device)
    rows_at_a_time = min(n, ROWS_AT_A_TIME)
    chunk = min(d_sae, max(SCRATCH_BYTES // (4 * max(rows_at_a_time, 1)) // 256 * 256, MIN_CHUNK))
    scratch = torch.empty(rows_at_a_time * chunk, dtype=_product_dtype(weight), device=x.device)
    for start in range(0, n, ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        best = _best_of(x[rows].to(weight.dtype), weight, bias, k, scratch, chunk)
        values[rows], indices[rows] = best.values_and_indices()
    return values, indices


@torch.no_grad()
def top_k(pre_activations: Tensor, k: int) -> Tensor:
    """Int64 `[tokens, k]`: the latents with the `k` largest of `[tokens, d_sae]`, read once, in no particular order.

    Raises:
        ValueError: if `k` is not between 1 and `d_sae`.
    """
    _check_k(k, pre_activations.shape[1])
    best = _running(pre_activations, k)
    best.merge(pre_activations.contiguous(), None, 0)
    return best.values_and_indices()[1]


def _check_k(k: int, d_sae: int) -> None:
    if not 1 <= k <= d_sae:
        raise ValueError(f"k must be between 1 and d_sae = {d_sae}, got {k}.")


def _product_dtype(weight: Tensor) -> torch.dtype:
    # on the CPU (tests with the interpreter) the operands are cast up instead
    keeps = not weight.is_cuda or "dtype_out" in torch.ops.aten.mm.overloads()
    return torch.float32 if keeps else weight.dtype


def _product(x: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    if out.dtype == x.dtype:
        return torch.mm(x, rows.T, out=out)
    if x.is_cuda:
        return torch.mm(x, rows.T, out_dtype=out.dtype, out=out)
    return torch.mm(x.to(out.dtype), rows.T.to(out.dtype), out=out)


def _best_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scratch: Tensor, chunk: int
) -> _Inserted | _Sorted:
    best = _running(x, k)
    for start in range(0, weight.shape[0], chunk):
        latents = slice(start, start + chunk)
        rows = weight[latents]
        scores = _product(x, rows, scratch[: x.shape[0] * rows.shape[0]].view(x.shape[0], rows.shape[0]))
        best.merge(scores, None if bias is None else bias[latents].contiguous(), start)
    return best


def _running(rows: Tensor, k: int) -> _Inserted | _Sorted:
    return (_Inserted if k <= INSERTION_K else _Sorted)(rows, k)


class _Inserted:
    """The k best of each row among the chunks merged so far, by [`merge_top_k_kernel`]; packed as it says."""

    def __init__(self, rows: Tensor, k: int) -> None:
        n = rows.shape[0]
        self.state = torch.empty(n, k, dtype=torch.int64, device=rows.device)
        self.thresholds = torch.empty(n, dtype=torch.int64, device=rows.device)
        self.first = True

    def merge(self, scores: Tensor, bias: Tensor | None, first_latent: int) -> None:
        from .triton_selection import merge_top_k_kernel

        (n, width), k = scores.shape, self.state.shape[1]
        sizes = {
            "BLOCK_C": min(power_of_two(width, 16), 1024),
            "BLOCK_K": power_of_two(k, 16),
            "num_warps": 4,
            **FUSED,
        }
        if n:
            with on_device_of(scores):
                merge_top_k_kernel[n,](
                    scores,
                    scores if bias is None else bias,
                    self.state,
                    self.thresholds,
                    width,
                    first_latent,
                    k,
                    FIRST=self.first,
                    HAS_BIAS=bias is not None,
                    **sizes,
                )
        self.first = False

    def values_and_indices(self) -> tuple[Tensor, Tensor]:
        key = (self.state >> 32).to(torch.int32)
        bits = key ^ ((key >> 31) & 0x7FFFFFFF)
        return bits.view(torch.float32), 0x7FFFFFFF - (self.state & 0x7FFFFFFF)


class _Sorted:
    """The same for a large k, by `torch.topk` of the best so far beside the chunk."""

    def __init__(self, rows: Tensor, k: int) -> None:
        self.k = k
        self.values = torch.empty(rows.shape[0], 0, dtype=torch.float32, device=rows.device)
        self.indices = torch.empty(rows.shape[0], 0, dtype=torch.int64, device=rows.device)

    def merge(self, scores: Tensor, bias: Tensor | None, first_latent: int) -> None:
        scores = scores.float() if bias is None else scores.float() + bias.float()
        latents = torch.arange(first_latent, first_latent + scores.shape[1], device=scores.device)
        values = torch.cat([self.values, scores], dim=1)
        self.values, at = values.topk(min(self.k, values.shape[1]), dim=1, sorted=False)
        self.indices = torch.cat([self.indices, latents.expand_as(scores)], dim=1).gather(1, at)

    def values_and_indices(self) -> tuple[Tensor, Tensor]:
        return self.values, self.indices
