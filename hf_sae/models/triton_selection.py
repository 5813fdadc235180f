"""Device code of the running top-k of [`triton_ops.encode_top_k`].

The state of a row is its k best latents so far as 64-bit integers: a key that sorts as the float does in the upper half, the
complement of the latent in the lower. So one integer maximum finds value and latent, no two candidates are equal, and among equal
values the lowest latent wins, in whatever chunks they come. A NaN sorts above everything, as in `torch.topk`.
"""

from __future__ import annotations


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The GPU kernels need triton. On Linux: pip install triton.") from error


LOWEST = tl.constexpr(-(2**63))
HIGHEST = tl.constexpr(2**63 - 1)


@triton.jit
def _candidates(scores, bias, start, n_columns, first_latent, HAS_BIAS: tl.constexpr, BLOCK_C: tl.constexpr):
    """`BLOCK_C` candidates of a row of scores, packed; `LOWEST` past its end."""
    columns = start + tl.arange(0, BLOCK_C)
    inside = columns < n_columns
    score = tl.load(scores + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        score += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    bits = tl.where(score == score, score.to(tl.int32, bitcast=True), 0x7FC00000)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats sort backwards
    packed = (key.to(tl.int64) << 32) | (0x7FFFFFFF - first_latent - columns).to(tl.int64)
    return tl.where(inside, packed, LOWEST)


@triton.jit
def _insert(
    scores,
    bias,
    best,
    n_columns,
    first_latent,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`best` after every candidate larger than its least has replaced that; the largest candidates come first.

    Over a whole row of F in random order about k (1 + ln(F / k)) candidates are inserted, a few hundred for k = 64, so the
    insertions cost little beside reading the scores.
    """
    least = tl.min(best, axis=0)
    for start in range(0, n_columns, BLOCK_C):
        packed = _candidates(scores, bias, start, n_columns, first_latent, HAS_BIAS, BLOCK_C)
        most = tl.max(packed, axis=0)
        while most > least:
            best = tl.where(best == least, most, best)
            packed = tl.where(packed == most, LOWEST, packed)
            least = tl.min(best, axis=0)
            most = tl.max(packed, axis=0)
    return best


@triton.jit
def merge_top_k_kernel(
    scores,
    bias,
    state,
    thresholds,
    n_columns,
    first_latent,
    k,
    FIRST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Merges a chunk of scores `[rows, n_columns]` into the state `[rows, k]`, a row a program.

    Reads the chunk once for its maximum and, where that is above the row's k-th best, once more (from the L1 cache) with the state.
    """
    row = tl.program_id(0).to(tl.int64)
    scores += row * n_columns
    slots = tl.arange(0, BLOCK_K)
    if FIRST:
        # below every candidate and all different, as a replacement must hit one slot
        best = tl.where(slots < k, LOWEST + slots.to(tl.int64), HIGHEST)
        best = _insert(scores, bias, best, n_columns, first_latent, HAS_BIAS, BLOCK_C)
        tl.store(state + row * k + slots, best, mask=slots < k)
        tl.store(thresholds + row, tl.min(best, axis=0))
    else:
        most = tl.load(thresholds + row)
        threshold = most
        for start in range(0, n_columns, BLOCK_C):
            packed = _candidates(scores, bias, start, n_columns, first_latent, HAS_BIAS, BLOCK_C)
            most = tl.maximum(most, tl.max(packed, axis=0))
        if most > threshold:
            best = tl.load(state + row * k + slots, mask=slots < k, other=HIGHEST)
            best = _insert(scores, bias, best, n_columns, first_latent, HAS_BIAS, BLOCK_C)
            tl.store(state + row * k + slots, best, mask=slots < k)
            tl.store(thresholds + row, tl.min(best, axis=0))
