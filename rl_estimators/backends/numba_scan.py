# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The recursions themselves, compiled: one step after the other, as they are written, and so equal to them to the bit.

    y_t = x_t + d y_{t+1}

Each step waits for the one before it: a multiplication and an addition, some six cycles, in which a core could do
dozens of both. So eight responses advance side by side, each in a lane; a lane whose response is done takes the next
one. That needs their numbers close together: read straight from the batch, whose rows of 2^k tokens all start at the
same place in a page, forty streams would evict each other from the first-level cache (measured: no gain over one row
at a time). So a tile of each lane's row is first brought to a small scratch; the eight scratch rows are scanned; each is
written out again.

Nothing is computed behind a response's last valid token, and where a tile has no hole the mask is read once, to
count, and leaves every loop: those are then plain loops over arrays, which the compiler turns into vector code. A masked
token between valid ones is a step with x = 0 and d = 1, which leaves y as it is: no choice stands in the loop, for the
processor guesses one in ten of them wrong where one token in ten is masked, and each costs as much as three steps.

No flag that would let the compiler fuse or reorder is set, but where sums for statistics are taken.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

__all__ = [
    "FIELDS",
    "LANES",
    "find_strays",
    "pack_rows",
    "pool",
    "scan_rows",
    "score_rows",
    "spread_rows",
    "standardise_rows",
    "sum_rows",
]

F = TypeVar("F", bound=Callable[..., Any])

LANES = 8
TILE = 4096  # tokens: 1024 x 8192 takes 9.6 ms with 1024, as short runs from right to left are slow to fetch, and 8.0
_APART = 80  # numbers by which a scratch row is longer, so that no two start at the same place in a page
FIELDS = WRITTEN, EXTENT, NUMBER, PIVOT, TOTAL, SQUARES = range(6)  # columns of the statistics, see rows.Rows


def _compiled(**options: Any) -> Callable[[F], F]:
    """Compile at the first call, without the GIL, and keep the result on disk where there is a place for it."""
    options = {"nogil": True, "error_model": "numpy", **options}

    def decorator(function: F) -> F:
        try:
            found: F = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            found = numba.njit(**options)(function)
        return found

    return decorator


# ---- what a mask says


@_compiled()
def _number(mask):
    """How many tokens are valid."""
    number = 0
    for t in range(len(mask)):
        number += mask[t]
    return number


@_compiled()
def _look(mask):
    """How many tokens are valid, and one beyond the last of them."""
    number, end = 0, 0
    for t in range(len(mask)):
        on = mask[t]
        number += on
        end = max(end, t + 1 if on else 0)
    return number, end


@_compiled()
def pack_rows(mask, out):
    """A mask of 0 and 1 as bytes; true if it holds anything else."""
    bits = mask[0, 0] & 0
    for b in range(len(mask)):
        source, target, here = mask[b], out[b], bits & 0
        for t in range(len(source)):
            here |= source[t]
            target[t] = source[t] != 0
        bits |= here
    return bits != 0 and bits != 1


@_compiled()
def find_strays(rewards, mask, found):
    """Which rows have a number other than 0, NaN included, where the mask is 0."""
    for b in range(len(rewards)):
        x, on, stray = rewards[b], mask[b], False
        for t in range(len(x)):
            stray |= (x[t] != 0) & (on[t] == 0)
        found[b] = stray


# ---- discounted sums and GAE


@_compiled()
def scan_rows(rewards, values, mask, last, gamma, discount, less, ahead, sums, stats):
    """Discounted sums of rewards, or of TD errors where there are values; numbers and mask are raw.

    Args:
        rewards: ``(B, T)``.
        values: ``(B, T)``, or None.
        mask: ``(B, T)``.
        last: ``(B,)`` the value after each row's last valid token; read with values.
        gamma: Read with values.
        discount: ``(B,)``, or ``(1,)`` for all rows; None: 1 in every row, a step that has nothing to multiply and so takes half the time.
        less: ``(B,)`` what is subtracted from a row's sums to give ``ahead``, or None.
        ahead: ``(B, T)`` output, the sums.
        sums: ``(B, T)`` output, the sums without ``less`` and plus the values; None where that is ``ahead``.
        stats: ``(B, 6)`` output, which holds zeros: of the sums, but with ``less`` only which rows count.
    """
    rows, width = len(mask), min(mask.shape[1], TILE)
    x = np.zeros((LANES, width + _APART), rewards.dtype)
    steps = np.zeros((LANES, width + _APART), rewards.dtype)
    packed = np.zeros(width + 1, rewards.dtype)  # for _bring
    row, end, number = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    later, next_value = np.zeros(LANES, rewards.dtype), np.zeros(LANES, rewards.dtype)
    rate = np.ones(LANES, rewards.dtype)
    coming = 0
    while True:
        for i in range(LANES):
            if end[i] == 0:  # the lane is free
                b = _next_row(mask, coming, ahead, sums, stats)
                row[i], coming, later[i] = b, b + 1, 0
                if b < rows:
                    end[i] = stats[b, EXTENT]
                    rate[i] = 1 if discount is None else discount[b if len(discount) > 1 else 0]
                    next_value[i] = 0 if values is None else last[b]
        if not end.any():
            return
        holes, longest = False, 0
        for i in range(LANES):
            if end[i] > 0:
                b, low, high = row[i], _low(end[i]), end[i]
                dense = stats[b, NUMBER] == stats[b, EXTENT]
                number[i] = high - low if dense else _number(mask[b, low:high])
                holes |= number[i] < high - low
                longest = max(longest, high - low)
                next_value[i] = _bring(
                    rewards, values, mask, b, low, high, number[i], gamma, next_value[i], x[i], packed
                )
        if holes and discount is not None:
            for i in range(LANES):
                b, low, high = row[i], _low(end[i]), end[i]
                _steps(mask, b, low, high, number[i], longest, rate[i], x[i], steps[i])
            _advance_over_holes(x, steps, later, longest)
        else:
            for i in range(LANES):  # a shorter tile begins at its own end with what comes from the right
                size = end[i] - _low(end[i])
                if number[i] < size:  # without a discount a step without a number leaves the sum as it is
                    _silence(mask[row[i], end[i] - size : end[i]], x[i])
                x[i, size] = later[i]
                x[i, size + 1 : longest + 1] = 0
            _advance(x, None if discount is None else rate, later, longest + 1)
        for i in range(LANES):
            if end[i] > 0:
                b, low, high = row[i], _low(end[i]), end[i]
                if number[i] == high - low:
                    _write(x[i], None, b, low, high, values, less, ahead, sums, stats[b])
                else:
                    _write(x[i], mask[b, low:high], b, low, high, values, less, ahead, sums, stats[b])
                end[i] = low
                if low == 0 and not np.isfinite(later[i] if less is None else later[i] - less[b]):
                    _exclude(b, values, mask, ahead, sums, stats)


@_compiled()
def _low(end):
    """Where the tile that ends there begins; 0 for a lane without a row, whose end is 0."""
    return max(end - 1, 0) // TILE * TILE


@_compiled()
def _next_row(mask, b, ahead, sums, stats):
    """The next row from b on that has a valid token; whatever stands behind its last one is 0."""
    rows, length = mask.shape
    while b < rows:
        stats[b, NUMBER], stats[b, EXTENT] = _look(mask[b])
        _clear(b, int(stats[b, EXTENT]), length, ahead, sums)
        if stats[b, NUMBER] > 0:
            return b
        b += 1
    return rows


@_compiled()
def _clear(b, low, high, ahead, sums):
    ahead[b, low:high] = 0
    if sums is not None:
        sums[b, low:high] = 0


@_compiled()
def _exclude(b, values, mask, ahead, sums, stats):
    """What is not finite has come through to the first token: nothing is left but the values, where finite."""
    stats[b, EXTENT:] = 0
    _clear(b, 0, mask.shape[1], ahead, sums)
    if values is not None:
        for t in range(mask.shape[1]):
            if mask[b, t] and np.isfinite(values[b, t]):
                sums[b, t] = values[b, t]


@_compiled()
def _bring(rewards, values, mask, b, low, high, number, gamma, next_value, x, packed):
    """Rewards, or r + gamma V' - V, on scratch, right where a token is valid; returns what the next tile has as V'."""
    width = high - low
    r = rewards[b, low:high]
    if values is None:
        for t in range(width):
            x[t] = r[t]
        return next_value
    v = values[b, low:high]
    if number == width:  # no step waits for another
        for t in range(width - 1):
            x[t] = r[t] + gamma * v[t + 1] - v[t]
        x[width - 1] = r[width - 1] + gamma * next_value - v[width - 1]
        return v[0]
    on, n, one = mask[b, low:high], numba.uintp(0), numba.uintp(1)
    packed[0] = next_value
    for k in range(width):  # packed[n] is the value of the next valid token; a masked one's is overwritten
        t = numba.uintp(width - 1 - k)
        x[t] = r[t] + gamma * packed[n] - v[t]
        packed[n + one] = v[t]
        n += numba.uintp(on[t])
    return packed[n]


@_compiled()
def _steps(mask, b, low, high, number, longest, rate, x, steps):
    """The discount of each step of a tile, and what it adds; behind the tile, and where a token is masked, 1 and 0."""
    width = high - low
    if number == width:
        steps[:width] = rate
    else:
        on = mask[b, low:high]
        for t in range(width):
            steps[t] = rate if on[t] else 1
            x[t] = x[t] if on[t] else 0
    steps[width:longest], x[width:longest] = 1, 0


@_compiled()
def _silence(mask, x):
    """0 where a token is masked."""
    for t in range(len(mask)):
        x[t] = x[t] if mask[t] else 0


@_compiled()
def _advance(x, discount, later, width):
    """Scan the scratch rows from right to left, from 0 on; without a discount it is 1."""
    if discount is not None:
        d0, d1, d2, d3 = discount[0], discount[1], discount[2], discount[3]
        d4, d5, d6, d7 = discount[4], discount[5], discount[6], discount[7]
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    y0 = y1 = y2 = y3 = y4 = y5 = y6 = y7 = x.dtype.type(0)
    for k in range(width):
        t = numba.uintp(width - 1 - k)
        y0 = x0[t] + (y0 if discount is None else d0 * y0)
        y1 = x1[t] + (y1 if discount is None else d1 * y1)
        y2 = x2[t] + (y2 if discount is None else d2 * y2)
        y3 = x3[t] + (y3 if discount is None else d3 * y3)
        y4 = x4[t] + (y4 if discount is None else d4 * y4)
        y5 = x5[t] + (y5 if discount is None else d5 * y5)
        y6 = x6[t] + (y6 if discount is None else d6 * y6)
        y7 = x7[t] + (y7 if discount is None else d7 * y7)
        x0[t], x1[t], x2[t], x3[t], x4[t], x5[t], x6[t], x7[t] = y0, y1, y2, y3, y4, y5, y6, y7
    later[:] = (y0, y1, y2, y3, y4, y5, y6, y7)


@_compiled()
def _advance_over_holes(x, steps, later, width):
    """As :func:`_advance`, from ``later`` on, with a discount for each step."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    d0, d1, d2, d3 = steps[0], steps[1], steps[2], steps[3]
    d4, d5, d6, d7 = steps[4], steps[5], steps[6], steps[7]
    y0, y1, y2, y3 = later[0], later[1], later[2], later[3]
    y4, y5, y6, y7 = later[4], later[5], later[6], later[7]
    for k in range(width):
        t = numba.uintp(width - 1 - k)
        y0 = x0[t] + d0[t] * y0
        y1 = x1[t] + d1[t] * y1
        y2 = x2[t] + d2[t] * y2
        y3 = x3[t] + d3[t] * y3
        y4 = x4[t] + d4[t] * y4
        y5 = x5[t] + d5[t] * y5
        y6 = x6[t] + d6[t] * y6
        y7 = x7[t] + d7[t] * y7
        x0[t], x1[t], x2[t], x3[t], x4[t], x5[t], x6[t], x7[t] = y0, y1, y2, y3, y4, y5, y6, y7
    later[:] = (y0, y1, y2, y3, y4, y5, y6, y7)


@_compiled(fastmath={"reassoc"})  # several partial sums at a time; what is written is one operation each
def _write(x, mask, b, low, high, values, less, ahead, sums, stats):
    """Write a tile out, and add it to its row's statistics; the pivot is the last token of the first tile.

    Without a mask, which is the tile's, all tokens are valid.
    """
    width = high - low
    if stats[WRITTEN] == 0:
        stats[WRITTEN] = 1
        stats[PIVOT] = x[width - 1]  # the row's last valid token
    out, pivot, total, squares = ahead[b, low:high], stats[PIVOT], 0.0, 0.0
    nothing = x.dtype.type(pivot)
    for t in range(width):
        on = True if mask is None else mask[t]
        y = x[t] if less is None else x[t] - less[b]
        out[t] = y if on else 0
        if less is None:
            apart = np.float64(y if on else nothing) - pivot
            total += apart
            squares += apart * apart
    if sums is not None:
        also = sums[b, low:high]
        for t in range(width):
            on = True if mask is None else mask[t]
            y = x[t] if values is None else x[t] + values[b, low + t]
            also[t] = y if on else 0
    stats[TOTAL] += total
    stats[SQUARES] += squares


# ---- sums over rows


@_compiled()
def sum_rows(x, mask, stats):
    """Statistics of what is valid in each row of ``(B, T)`` numbers."""
    for b in range(len(x)):
        number, extent = _look(mask[b])
        if number > 0:
            stats[b, WRITTEN], stats[b, NUMBER], stats[b, EXTENT] = 1, number, extent
            stats[b, PIVOT] = x[b, extent - 1]
            stats[b, TOTAL], stats[b, SQUARES] = _sums(x[b, :extent], mask[b], number, stats[b, PIVOT])


@_compiled()
def score_rows(rewards, mask, stats):
    """Each row's sum in fp64, as ``TOTAL`` with pivot 0; not finite in the rewards' dtype: the response is excluded."""
    score = np.zeros(1, rewards.dtype)
    for b in range(len(rewards)):
        number, extent = _look(mask[b])
        if number > 0:
            stats[b, WRITTEN] = 1
            total, _ = _sums(rewards[b, :extent], mask[b], number, 0.0)
            score[0] = total
            if np.isfinite(score[0]):
                stats[b, NUMBER], stats[b, EXTENT], stats[b, TOTAL] = number, extent, total


@_compiled(fastmath={"reassoc"})  # several partial sums at a time
def _sums(x, mask, number, pivot):
    """Sum and sum of squares of the valid ones among x, less the pivot, which is a number of x's dtype."""
    total, squares, nothing = 0.0, 0.0, x.dtype.type(pivot)
    if number == len(x):
        for t in range(len(x)):
            apart = np.float64(x[t]) - pivot
            total += apart
            squares += apart * apart
    else:
        for t in range(len(x)):
            apart = np.float64(x[t] if mask[t] else nothing) - pivot
            total += apart
            squares += apart * apart
    return total, squares


@_compiled()
def pool(stats, by_row, ddof):
    """A pivot of the batch, its mean less that pivot, and its variance; see ``backends.pooled``."""
    start, whole, apart_sum = 0.0, 0.0, 0.0
    for b in range(len(stats)):
        if stats[b, NUMBER] > 0:
            start = stats[b, PIVOT]
            break
    for b in range(len(stats)):
        number = stats[b, NUMBER]
        if number > 0:
            weight = 1 / number if by_row else 1.0
            whole += weight * number
            apart_sum += weight * (stats[b, TOTAL] + number * (stats[b, PIVOT] - start))
    shift, spread = apart_sum / max(whole, 1.0), 0.0
    for b in range(len(stats)):
        number = stats[b, NUMBER]
        if number > 0:
            weight, off = 1 / number if by_row else 1.0, stats[b, PIVOT] - start - shift
            spread += weight * (stats[b, SQUARES] + off * (2 * stats[b, TOTAL] + number * off))
    return start, shift, max(spread, 0.0) / max(whole - ddof, 1.0)


# ---- numbers written to every token


@_compiled()
def standardise_rows(x, mask, stats, pivot, shift, scale, out):
    """(x - pivot - shift) scale on valid tokens of rows that count, 0 elsewhere, in ``out`` or, where that is None, x.

    The mask of a row whose valid tokens all stand first is not read again. Written in place without a second name for
    it, a loop is vector code; with one the compiler must allow for the two to overlap.
    """
    for b in range(len(x)):
        y = x[b] if out is None else out[b]
        number, extent = int(stats[b, NUMBER]), int(stats[b, EXTENT])
        if number == extent:
            if out is None:
                for t in range(number):
                    y[t] = (y[t] - pivot - shift) * scale
            else:
                for t in range(number):
                    y[t] = (x[b, t] - pivot - shift) * scale
            y[number:] = 0
        elif out is None:
            for t in range(len(y)):
                y[t] = (y[t] - pivot - shift) * scale if mask[b, t] else 0
        else:
            for t in range(len(y)):
                y[t] = (x[b, t] - pivot - shift) * scale if mask[b, t] else 0


@_compiled()
def spread_rows(x, mask, stats, out):
    """Each row's number on its valid tokens, 0 elsewhere; as above, a mask without holes is not read again."""
    for b in range(len(mask)):
        number, extent = int(stats[b, NUMBER]), int(stats[b, EXTENT])
        if number == extent:
            out[b, :number] = x[b]
            out[b, number:] = 0
        else:
            _spread(x[b], mask[b], out[b])


@_compiled()
def _spread(x, mask, out):
    for t in range(len(mask)):
        out[t] = x if mask[t] else 0
