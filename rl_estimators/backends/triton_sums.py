# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What is known of each row, of ``rows.Rows``, on a CUDA device: one program per row, and one for all rows together.

A lane of a program adds up its own tokens, every BLOCK-th of the row, in fp64; the lanes are added up at the row's end.
"""

import triton
import triton.language as tl

__all__ = [
    "add_block",
    "moments_kernel",
    "no_block",
    "odd",
    "pool_kernel",
    "scores_kernel",
    "store_row",
    "strays_kernel",
]


@triton.jit
def odd(x):
    """Whether a number is not finite."""
    return (x != x) | (tl.abs(x) == float("inf"))


@triton.jit
def no_block(BLOCK: tl.constexpr):
    """The statistics of a row before its first block: extent, pivot, number, total and squares."""
    nothing = tl.zeros((BLOCK,), tl.float64)
    return tl.zeros((), tl.int32), tl.zeros((), tl.float32), tl.zeros((BLOCK,), tl.int32), nothing, nothing


@triton.jit
def add_block(y, on, at, extent, pivot, number, total, squares):
    """The statistics of a row with those of its next block; blocks come from right to left.

    The pivot is the row's last valid number, as in ``numba_scan``; the others are lane by lane.
    """
    if extent == 0:
        extent = tl.max(tl.where(on, at + 1, 0), 0)
        pivot = tl.sum(tl.where(at + 1 == extent, y, 0.0), 0)
    apart = tl.where(on, y.to(tl.float64) - pivot.to(tl.float64), 0.0)
    return extent, pivot, number + on.to(tl.int32), total + apart, squares + apart * apart


@triton.jit
def store_row(written, counts, sums, number, extent, pivot, total, squares, excluded):
    """One row's statistics; 0 where it is excluded.

    ``written`` is ``(B,)``; ``counts`` is ``(2, B)``, number and extent; ``sums`` is ``(3, B)``, pivot, total and squares.
    """
    row, rows = tl.program_id(0), tl.num_programs(0)
    tl.store(written + row, (number > 0).to(tl.uint8))
    tl.store(counts + row, tl.where(excluded, 0, number))
    tl.store(counts + rows + row, tl.where(excluded, 0, extent))
    tl.store(sums + row, tl.where(excluded, 0.0, pivot))
    tl.store(sums + rows + row, tl.where(excluded, 0.0, total))
    tl.store(sums + 2 * rows + row, tl.where(excluded, 0.0, squares))


@triton.jit
def moments_kernel(x, mask, written, counts, sums, length, x_stride, mask_stride, BLOCK: tl.constexpr):
    """Statistics of what is valid in a row, which is finite."""
    row = tl.program_id(0).to(tl.int64)
    extent, pivot, number, total, squares = no_block(BLOCK)
    block_count = tl.cdiv(length, BLOCK)
    for k in range(block_count):
        at = (block_count - 1 - k) * BLOCK + tl.arange(0, BLOCK)
        on = tl.load(mask + row * mask_stride + at, mask=at < length, other=0) != 0
        y = tl.load(x + row * x_stride + at, mask=on, other=0.0)
        extent, pivot, number, total, squares = add_block(y, on, at, extent, pivot, number, total, squares)
    store_row(
        written, counts, sums, tl.sum(number, 0), extent, pivot, tl.sum(total, 0), tl.sum(squares, 0), False
    )


@triton.jit
def scores_kernel(
    rewards, mask, written, counts, sums, length, reward_stride, mask_stride, BLOCK: tl.constexpr
):
    """A row's sum as ``total``, with pivot 0; not finite in fp32: the response is excluded."""
    row = tl.program_id(0).to(tl.int64)
    extent = tl.zeros((BLOCK,), tl.int32)
    number = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float64)
    for k in range(tl.cdiv(length, BLOCK)):
        at = k * BLOCK + tl.arange(0, BLOCK)
        on = tl.load(mask + row * mask_stride + at, mask=at < length, other=0) != 0
        total += tl.load(rewards + row * reward_stride + at, mask=on, other=0.0).to(tl.float64)
        extent = tl.where(on, at + 1, extent)
        number += on.to(tl.int32)
    score = tl.sum(total, 0)
    excluded = odd(score.to(tl.float32))
    store_row(written, counts, sums, tl.sum(number, 0), tl.max(extent, 0), 0.0, score, 0.0, excluded)


@triton.jit
def strays_kernel(rewards, mask, found, length, reward_stride, mask_stride, BLOCK: tl.constexpr):
    """Whether a row has a number other than 0, NaN included, where the mask is 0."""
    row = tl.program_id(0).to(tl.int64)
    stray = tl.zeros((BLOCK,), tl.int32)
    for k in range(tl.cdiv(length, BLOCK)):
        at = k * BLOCK + tl.arange(0, BLOCK)
        inside = at < length
        off = tl.load(mask + row * mask_stride + at, mask=inside, other=1) == 0
        reward = tl.load(rewards + row * reward_stride + at, mask=off, other=0.0)
        stray |= (reward != 0.0).to(tl.int32)
    tl.store(found + row, tl.max(stray, 0).to(tl.uint8))


@triton.jit
def pool_kernel(
    number, pivot, total, squares, found, rows,
    BY_ROW: tl.constexpr, DDOF: tl.constexpr, EPS: tl.constexpr, EPS_IN_STD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A pivot of the batch, its mean less that pivot, and the scale, to ``(3,)``; see ``backends.pooled``.

    One program goes over the rows three times: for the pivot, the mean, the variance.
    """
    lanes = tl.arange(0, BLOCK)
    first = tl.full((), 2147483647, tl.int32)
    for begin in range(0, rows, BLOCK):
        at = begin + lanes
        counts = tl.load(number + at, mask=at < rows, other=0) > 0
        first = tl.minimum(first, tl.min(tl.where(counts, at, 2147483647), 0))
    start = tl.load(pivot + first, mask=first < rows, other=0.0)
    whole = tl.zeros((BLOCK,), tl.float64)
    apart_sum = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, rows, BLOCK):
        at = begin + lanes
        n, weight, counts = _weights(number, at, rows, BY_ROW)
        apart = tl.load(pivot + at, mask=counts, other=0.0) - start
        whole += tl.where(counts, weight * n, 0.0)
        apart_sum += tl.where(counts, weight * (tl.load(total + at, mask=counts, other=0.0) + n * apart), 0.0)
    weights = tl.sum(whole, 0)
    shift = tl.sum(apart_sum, 0) / tl.maximum(weights, 1.0)
    spread = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, rows, BLOCK):
        at = begin + lanes
        n, weight, counts = _weights(number, at, rows, BY_ROW)
        off = tl.load(pivot + at, mask=counts, other=0.0) - start - shift
        s = tl.load(total + at, mask=counts, other=0.0)
        q = tl.load(squares + at, mask=counts, other=0.0)
        spread += tl.where(counts, weight * (q + off * (2.0 * s + n * off)), 0.0)
    variance = tl.maximum(tl.sum(spread, 0), 0.0) / tl.maximum(weights - DDOF, 1.0)
    size = tl.sqrt(variance) + EPS if EPS_IN_STD else tl.sqrt(variance + EPS)
    tl.store(found, start)
    tl.store(found + 1, shift)
    tl.store(found + 2, tl.where((size > 0.0) & (size < float("inf")), 1.0 / size, 0.0))


@triton.jit
def _weights(number, at, rows, BY_ROW: tl.constexpr):
    """How many numbers of each row count, what each weighs, and whether the row counts."""
    n = tl.load(number + at, mask=at < rows, other=0).to(tl.float64)
    weight = 1.0 / tl.maximum(n, 1.0) if BY_ROW else tl.full(n.shape, 1.0, tl.float64)
    return n, weight, n > 0
