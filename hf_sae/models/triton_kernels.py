"""Device code of [`triton_ops`]: sparse gathers, a stable counting sort, row sums and a running top-k.

Written from the formulas in the docstrings. Two rules hold in all of it: sums are formed in float32 in an order that depends on
nothing but the arguments (the only atomics count integers), and offsets into `[tokens, d]` and `[d_sae, d]` are 64-bit, since
either can have more than 2^31 elements. Sizes that change during a run (k, number of tokens) are ordinary arguments:
a constant would compile again for each.
"""

from __future__ import annotations


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The GPU kernels need triton. On Linux: pip install triton.") from error


@triton.jit
def _pieces(matrix, rows, row_mask, columns, d):
    """`[len(rows), len(columns)]` in float32; 0 where there is no row or no column."""
    mask = row_mask[:, None] & (columns < d)[None, :]
    return tl.load(matrix + rows[:, None] * d + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def decode_kernel(values, indices, weight, out, k, d, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """`out[t] = sum_j values[t, j] weight[indices[t, j]]`, one tile of columns of one token.

    Tokens are the fast axis of the grid, so that at one time all programs read one tile of columns of `weight`,
    which then stays in the L2 cache where `d_sae * BLOCK_D` elements fit.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, k, BLOCK_K):
        slots = start + tl.arange(0, BLOCK_K)
        here = slots < k
        latents = tl.load(indices + token * k + slots, mask=here, other=0).to(tl.int64)
        scale = tl.load(values + token * k + slots, mask=here, other=0.0).to(tl.float32)
        total += scale[:, None] * _pieces(weight, latents, here, columns, d)
    tl.store(out + token * d + columns, tl.sum(total, axis=0), mask=columns < d)


@triton.jit
def error_and_dots_kernel(
    values, indices, weight, target, error, dots, k, d, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """`error[t] = target[t] - sum_j values[t, j] W_j` and `dots[t, j] = <W_j, error[t]>`, `W_j = weight[indices[t, j]]`.

    A column of the error needs that column of the k rows and no other, so the `[k, BLOCK_D]` piece of a tile is read once and serves
    the reconstruction and the products.
    """
    token = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, BLOCK_K)
    here = slots < k
    latents = tl.load(indices + token * k + slots, mask=here, other=0).to(tl.int64)
    scale = tl.load(values + token * k + slots, mask=here, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, d, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        inside = columns < d
        pieces = _pieces(weight, latents, here, columns, d)
        wanted = tl.load(target + token * d + columns, mask=inside, other=0.0).to(tl.float32)
        rest = wanted - tl.sum(scale[:, None] * pieces, axis=0)
        tl.store(error + token * d + columns, rest, mask=inside)
        total += tl.sum(rest[None, :] * pieces, axis=1)
    tl.store(dots + token * k + slots, total, mask=here)


@triton.jit
def dots_kernel(rows, indices, weight, dots, k, d, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """`dots[t, j] = <rows[t], weight[indices[t, j]]>` for `BLOCK_K` of the j."""
    token = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    here = slots < k
    latents = tl.load(indices + token * k + slots, mask=here, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, d, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        row = tl.load(rows + token * d + columns, mask=columns < d, other=0.0).to(tl.float32)
        total += row[None, :] * _pieces(weight, latents, here, columns, d)
    tl.store(dots + token * k + slots, tl.sum(total, axis=1), mask=here)


@triton.jit
def count_kernel(keys, counts, n, shift, n_chunks, BINS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """`counts[b, c]`: how many keys of chunk c have the digit b. Integer atomics: their order does not show."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    digits = (tl.load(keys + at, mask=at < n, other=0) >> shift) & (BINS - 1)
    tl.atomic_add(counts + digits * n_chunks + at // CHUNK, 1, mask=at < n, sem="relaxed")


@triton.jit
def place_kernel(
    keys,
    order,
    ends,
    keys_out,
    order_out,
    n,
    shift,
    n_chunks,
    FIRST: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """One stable pass of the sort: where a key goes is the start of its digit's run in its chunk plus its rank there.

    `ends` is the inclusive sum of the counts by digit, then chunk. Counted from the end of the run, a rank is the number of keys
    from here to the end of the chunk that have the same digit, found by comparing `BLOCK` x `STEP` at a time.
    """
    start = tl.program_id(0) * BLOCK
    at = start + tl.arange(0, BLOCK)
    here = at < n
    key = tl.load(keys + at, mask=here, other=0)
    digits = (key >> shift) & (BINS - 1)
    after = tl.zeros([BLOCK], tl.int32)
    chunk_end = tl.minimum((start // CHUNK + 1) * CHUNK, n)
    for other_start in range(start, chunk_end, STEP):
        other = other_start + tl.arange(0, STEP)
        other_digits = (tl.load(keys + other, mask=other < n, other=0) >> shift) & (BINS - 1)
        same = (digits[:, None] == other_digits[None, :]) & (other[None, :] >= at[:, None]) & (other < n)[None, :]
        after += tl.sum(same.to(tl.int32), axis=1)
    goes_to = tl.load(ends + digits * n_chunks + start // CHUNK, mask=here, other=0) - after
    tl.store(keys_out + goes_to, key, mask=here)
    if FIRST:
        tl.store(order_out + goes_to, at, mask=here)
    else:
        tl.store(order_out + goes_to, tl.load(order + at, mask=here, other=0), mask=here)


@triton.jit
def _sum_span(
    tokens,
    begin,
    end,
    weights,
    rows,
    d,
    weights_2,
    rows_2,
    d_2,
    columns,
    TWO: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sums of `weights[i] * rows[tokens[i]]` and of its second pair over begin <= i < end, one tile of columns."""
    total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    total_2 = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_T):
        entries = start + tl.arange(0, BLOCK_T)
        here = entries < end
        token = tl.load(tokens + entries, mask=here, other=0).to(tl.int64)
        scale = tl.load(weights + entries, mask=here, other=0.0).to(tl.float32)
        total += scale[:, None] * _pieces(rows, token, here, columns, d)
        if TWO:
            scale_2 = tl.load(weights_2 + entries, mask=here, other=0.0).to(tl.float32)
            total_2 += scale_2[:, None] * _pieces(rows_2, token, here, columns, d_2)
    return tl.sum(total, axis=0), tl.sum(total_2, axis=0)


@triton.jit
def sum_segments_kernel(
    tokens,
    offsets,
    weights,
    rows,
    d,
    weights_2,
    rows_2,
    d_2,
    owners,
    firsts,
    partial,
    partial_2,
    n_latents,
    TWO: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums one segment, other than the first, of a latent with more than `SEGMENT` entries into a row of `partial`."""
    item = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + item)
    if latent < n_latents:  # there are at most as many segments as the grid has rows
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        begin = tl.load(offsets + latent) + (item - tl.load(firsts + latent) + 1) * SEGMENT
        end = tl.minimum(begin + SEGMENT, tl.load(offsets + latent + 1))
        total, total_2 = _sum_span(
            tokens, begin, end, weights, rows, d, weights_2, rows_2, d_2, columns, TWO, BLOCK_T, BLOCK_D
        )
        tl.store(partial + item * d + columns, total, mask=columns < d)
        if TWO:
            tl.store(partial_2 + item * d_2 + columns, total_2, mask=columns < d_2)


@triton.jit
def _sum_partial(partial, begin, end, columns, d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_T):
        items = start + tl.arange(0, BLOCK_T)
        total += _pieces(partial, items, items < end, columns, d)
    return tl.sum(total, axis=0)


@triton.jit
def sum_rows_kernel(
    tokens,
    offsets,
    weights,
    rows,
    d,
    weights_2,
    rows_2,
    d_2,
    firsts,
    partial,
    partial_2,
    out,
    out_2,
    TWO: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`out[f]`: the first segment of latent f, then its other segments in their order; one tile of columns.

    Latents are the fast axis of the grid: at one time all programs read one tile of columns of `rows`, which stays in
    the L2 cache (16k tokens x 256 columns in bfloat16 are 8 MB).
    """
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(offsets + latent)
    end = tl.minimum(begin + SEGMENT, tl.load(offsets + latent + 1))
    total, total_2 = _sum_span(
        tokens, begin, end, weights, rows, d, weights_2, rows_2, d_2, columns, TWO, BLOCK_T, BLOCK_D
    )
    first, last = tl.load(firsts + latent), tl.load(firsts + latent + 1)
    total += _sum_partial(partial, first, last, columns, d, BLOCK_T, BLOCK_D)
    tl.store(out + latent * d + columns, total, mask=columns < d)
    if TWO:
        total_2 += _sum_partial(partial_2, first, last, columns, d_2, BLOCK_T, BLOCK_D)
        tl.store(out_2 + latent * d_2 + columns, total_2, mask=columns < d_2)
