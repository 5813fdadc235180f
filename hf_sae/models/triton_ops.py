"""The sparse operations of [`sparse_ops`] as Triton kernels: launches, shapes and dtypes.

Ask [`available`] first, for each call: what counts is where the tensors are, not what is installed. Nothing here records a graph, and
triton is imported by the first launch. Every result is the same to the bit whenever the arguments are. Inputs are float32, bfloat16 or
float16 in any mixture, sums are formed in float32; tensors that are not contiguous are copied. Indices are int32 or int64, and as
in any kernel one outside of `[0, d_sae)` is undefined behaviour.

Launch parameters follow from the shapes by a few rules and are not tuned at run time, which costs seconds at start and
makes results depend on timing: a tile is at most 8192 elements, which is 32 float32 registers a thread for 8 warps, and
at least 32 columns wide where d allows, so that a row piece fills whole 32-byte sectors.

Bytes moved, with s bytes an element: `decode`, `error_and_dots`, `dots` N k d s for the gather plus N d s for each of
input and output rows; `sum_rows` the same N k d s plus 4 F d for the result; `transpose` about 100 N k.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


SEGMENT = 256  # entries of a latent that one program sums: a latent that fires on every token is shared by many
SINGLE_GATHER_K = 256
# said at every launch, since triton is about to change its default: results would change with its version
FUSED = {"enable_fp_fusion": True}


def available(tensor: Tensor) -> bool:
    """Whether the kernels run on `tensor`: float32 or half precision on a GPU that Triton supports, with triton installed.

    With `TRITON_INTERPRET=1` in the environment before triton is first imported, tensors on the CPU are fine too; that is
    for tests, since it takes thousands of times as long.
    """
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not _installed():
        return False
    if tensor.is_cuda:
        return _supported(tensor.get_device(), tensor.dtype)
    return tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and _interpreted()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


@cache
def _supported(device: int, dtype: torch.dtype) -> bool:
    if torch.version.hip is not None:
        return True
    major = torch.cuda.get_device_capability(device)[0]
    return major >= 8 or (major == 7 and dtype != torch.bfloat16)  # bfloat16 came with compute capability 8.0


@cache
def _interpreted() -> bool:
    from .triton_kernels import decode_kernel, tl

    # the variable counts when a function is defined: set too late, it leaves triton's own functions as they are
    return all(type(function).__name__ == "InterpretedFunction" for function in (decode_kernel, tl.sum))


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whichever holds the tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def power_of_two(n: int, at_least: int = 1) -> int:
    """The smallest power of two that is neither below `n` nor below `at_least`, itself one."""
    return max(at_least, 1 << max(n - 1, 0).bit_length())


def _tile(rows: int, d: int, elements: int = 8192) -> dict[str, int]:
    """Columns of a tile of `rows` rows, and the warps that work on it."""
    width = min(max(elements // rows, 32), 256, power_of_two(d, 16))
    return {"BLOCK_D": width, "num_warps": min(8, max(1, rows * width // 1024)), **FUSED}


def _float32(like: Tensor, rows: int, columns: int) -> Tensor:
    return like.new_empty(rows, columns, dtype=torch.float32)


def _check_code(values: Tensor | None, indices: Tensor, rows: Tensor | None, weight: Tensor) -> None:
    if values is not None and values.shape != indices.shape:
        raise ValueError(f"values {list(values.shape)} and indices {list(indices.shape)} must have the same shape.")
    if rows is not None and rows.shape != (indices.shape[0], weight.shape[1]):
        given = f"rows {list(rows.shape)}, indices {list(indices.shape)}, weight {list(weight.shape)}"
        raise ValueError(f"Expected rows [tokens, d], indices [tokens, k], weight [d_sae, d]; got {given}.")


def decode(values: Tensor, indices: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`[tokens, d]`: the sum of `values[t, j] * weight[indices[t, j]]` over j.

    Args:
        values (`Tensor`): `[tokens, k]`.
        indices (`Tensor`): `[tokens, k]`.
        weight (`Tensor`): `[d_sae, d]`, a latent a row.
        dtype (`torch.dtype`, *optional*): of the result; that of `weight` by default.

    Raises:
        ValueError: if the shapes do not agree.
    """
    from .triton_kernels import decode_kernel

    _check_code(values, indices, None, weight)
    values, indices, weight = (t.detach().contiguous() for t in (values, indices, weight))
    (n, k), d = indices.shape, weight.shape[1]
    out = weight.new_empty(n, d, dtype=dtype)
    if out.numel():
        block_k = min(power_of_two(k), 16)
        tile = _tile(block_k, d, 4096)
        with on_device_of(weight):
            decode_kernel[n, -(-d // tile["BLOCK_D"])](values, indices, weight, out, k, d, BLOCK_K=block_k, **tile)
    return out


def error_and_dots(values: Tensor, indices: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What a code leaves of `target`, and the product of that with each decoder row of the code, for one gather.

    Args:
        values (`Tensor`): `[tokens, k]`.
        indices (`Tensor`): `[tokens, k]`.
        weight (`Tensor`): `[d_sae, d]`.
        target (`Tensor`): `[tokens, d]`.

    Returns:
        `target - decode(values, indices, weight)`, `[tokens, d]` in the dtype of `target`; and float32 `[tokens, k]`,
        `<weight[indices[t, j]], error[t]>` with the error before it is rounded. Above k = 256 a tile of k rows does not fit in
        registers, and the rows are read twice.

    Raises:
        ValueError: if the shapes do not agree.
    """
    from .triton_kernels import error_and_dots_kernel

    _check_code(values, indices, target, weight)
    (n, k), d = indices.shape, weight.shape[1]
    if k > SINGLE_GATHER_K:
        rest = target.float() - decode(values, indices, weight, torch.float32)
        return rest.to(target.dtype), dots(rest, indices, weight)
    values, indices, weight, target = (t.detach().contiguous() for t in (values, indices, weight, target))
    error, products = torch.empty_like(target), _float32(target, n, k)
    if n:
        block_k = power_of_two(k)
        with on_device_of(weight):
            error_and_dots_kernel[n,](
                values, indices, weight, target, error, products, k, d, BLOCK_K=block_k, **_tile(block_k, d)
            )
    return error, products


def dots(rows: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """Float32 `[tokens, k]`: `<rows[t], weight[indices[t, j]]>`, for rows `[tokens, d]` and weight `[d_sae, d]`.

    Raises:
        ValueError: if the shapes do not agree.
    """
    from .triton_kernels import dots_kernel

    _check_code(None, indices, rows, weight)
    rows, indices, weight = (t.detach().contiguous() for t in (rows, indices, weight))
    (n, k), d = indices.shape, weight.shape[1]
    out = _float32(weight, n, k)
    if out.numel():
        block_k = min(power_of_two(k), 32)
        with on_device_of(weight):
            dots_kernel[n, -(-k // block_k)](
                rows, indices, weight, out, k, d, BLOCK_K=block_k, **_tile(block_k, d, 4096)
            )
    return out


def transpose(indices: Tensor, d_sae: int) -> tuple[Tensor, Tensor]:
    """The entries of `[tokens, k]` indices by latent: a stable sort, so within a latent they are ordered by token.

    A radix sort of at most 10 bits a pass, two passes up to a million latents: count the digits of each chunk of 512
    entries, sum the counts, place every entry by its rank in the chunk. Scratch is 4 bytes a digit and chunk.

    Returns:
        `order`, int64 `[tokens * k]`: the flat position of each entry; and `offsets`, int64 `[d_sae + 1]`: latent f owns
        `order[offsets[f] : offsets[f + 1]]`.

    Raises:
        ValueError: for 2^31 entries or more.
    """
    from .triton_kernels import count_kernel, place_kernel

    n = indices.numel()
    if n >= 2**31 - 1024:
        raise ValueError(f"transpose takes fewer than 2^31 entries, got {n}. Use fewer tokens a step.")
    block, chunk = 128, 512
    keys = indices.detach().reshape(-1).to(torch.int32)
    order = torch.arange(n, dtype=torch.int32, device=keys.device)
    bits = max((d_sae - 1).bit_length(), 1)
    passes = -(-bits // 10) if n else 0
    digit = -(-bits // max(passes, 1))
    n_chunks, sizes = -(-n // chunk), {"BINS": 2**digit, "CHUNK": chunk, "BLOCK": block, "num_warps": 4, **FUSED}
    for i in range(passes):
        counts, grid, shift = keys.new_zeros(2**digit, n_chunks), (-(-n // block),), i * digit
        placed = torch.empty_like(keys), torch.empty_like(keys)
        with on_device_of(keys):
            count_kernel[grid](keys, counts, n, shift, n_chunks, **sizes)
            ends = counts.view(-1).cumsum(0, dtype=torch.int32)
            place_kernel[grid](keys, order, ends, *placed, n, shift, n_chunks, FIRST=i == 0, STEP=32, **sizes)
        keys, order = placed
    bounds = torch.arange(d_sae + 1, dtype=torch.int32, device=keys.device)
    return order.long(), torch.searchsorted(keys, bounds)


def sum_rows(tokens: Tensor, offsets: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Float32 `[latents, d]`: for each latent the sum of `weights[i] * rows[tokens[i]]` over its entries i.

    A latent with more than 256 entries is summed in segments by several programs, then over the segments, always in
    order; scratch is `entries / 256` rows. A latent's sum does not depend on which other latents are asked for.

    Args:
        tokens (`Tensor`): `[entries]`, entries sorted by latent.
        offsets (`Tensor`): `[latents + 1]`; may start above 0, for a range of the latents.
        weights (`Tensor`): `[entries]`.
        rows (`Tensor`): `[tokens, d]`.
    """
    return _sum_rows(tokens, offsets, weights, rows, weights, rows, two=False)[0]


def sum_two_rows(
    tokens: Tensor, offsets: Tensor, weights: Tensor, rows: Tensor, weights_2: Tensor, rows_2: Tensor
) -> tuple[Tensor, Tensor]:
    """[`sum_rows`] of two pairs of weights and rows in one visit: both weight gradients of a step.

    The rows `[tokens, d]` and `[tokens, d_2]` may differ in width and dtype. Equal to two calls up to rounding: a GPU may
    lay out the tiles of one call differently.
    """
    return _sum_rows(tokens, offsets, weights, rows, weights_2, rows_2, two=True)


def _sum_rows(tokens, offsets, weights, rows, weights_2, rows_2, *, two: bool) -> tuple[Tensor, Tensor]:
    from .triton_kernels import sum_rows_kernel, sum_segments_kernel

    tokens, offsets, weights, rows, weights_2, rows_2 = (
        t.detach().contiguous() for t in (tokens, offsets, weights, rows, weights_2, rows_2)
    )
    n_latents, d, d_2 = offsets.numel() - 1, rows.shape[1], rows_2.shape[1]
    sums = _float32(rows, n_latents, d), _float32(rows, n_latents if two else 0, d_2)
    if not n_latents:
        return sums
    # segments after the first: how many is known without asking the device only as a bound
    extra = ((offsets.diff() - 1).clamp_min(0) // SEGMENT).cumsum(0)
    firsts = torch.cat([extra.new_zeros(1), extra])
    n_items = tokens.numel() // SEGMENT
    owners = torch.searchsorted(extra, torch.arange(n_items, device=rows.device), right=True)
    partial = _float32(rows, n_items, d), _float32(rows, n_items if two else 0, d_2)
    sizes = {"TWO": two, "SEGMENT": SEGMENT, "BLOCK_T": 8, **_tile(8, max(d, d_2), 2048)}
    n_tiles = -(-max(d, d_2) // sizes["BLOCK_D"])
    given = (tokens, offsets, weights, rows, d, weights_2, rows_2, d_2)
    with on_device_of(rows):
        if n_items:
            sum_segments_kernel[n_items, n_tiles](*given, owners, firsts, *partial, n_latents, **sizes)
        sum_rows_kernel[n_latents, n_tiles](*given, firsts, *partial, *sums, **sizes)
    return sums
