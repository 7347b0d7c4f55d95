# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The recursions themselves, compiled: one step after the other, as they are written, and so equal to them to the bit.

    y_t = x_t + d y_{t+1}

Each step waits for the one before it: a multiplication and an addition, some six cycles, in which a core could do
dozens of both. So eight responses advance side by side, each in a lane; a lane whose response is done takes the next
one. That needs their numbers close together: read straight from the batch, whose rows of 2^k tokens all start at the
same place in a page, forty streams would evict each other from the first-level cache (measured: no gain over one row
at a time). So a tile of each lane's row is first brought to a small scratch; the eight scratch rows are scanned; each is
written out again, where the outputs are large from a desk and past the cache
(:mod:`rl_estimators.backends.numba_memory`).

Nothing is computed behind a response's last valid token, and where a tile has no hole the mask is read once, to
count, and leaves every loop: those are then plain loops over arrays, which the compiler turns into vector code. A masked
token between valid ones is a step with x = 0 and d = 1, which leaves y as it is: no choice stands in the loop, for the
processor guesses one in ten of them wrong where one token in ten is masked, and each costs as much as three steps.

No flag that would let the compiler fuse or reorder is set, but where sums for statistics are taken.
"""

import numba
import numpy as np

from rl_estimators.backends.numba_compile import compiled
from rl_estimators.backends.numba_memory import CHUNK, piece, put, settle
from rl_estimators.backends.numba_sums import EXTENT, NUMBER, PIVOT, SQUARES, TOTAL, WRITTEN, count, look

__all__ = ["LANES", "scan_rows"]

LANES = 8
TILE = 4096  # tokens: 1024 x 8192 takes 9.6 ms with 1024, as short runs from right to left are slow to fetch, and 8.0
_APART = 80  # numbers by which a scratch row is longer, so that no two start at the same place in a page


@compiled()
def scan_rows(rewards, values, mask, last, gamma, discount, less, out, also, stats, past):
    """Discounted sums of rewards, or of TD errors where there are values; numbers and mask are raw.

    Args:
        rewards: ``(B, T)``.
        values: ``(B, T)``, or None.
        mask: ``(B, T)``.
        last: ``(B,)`` the value after each row's last valid token; read with values.
        gamma: Read with values.
        discount: ``(B,)``, or ``(1,)`` for all rows; None: 1 in every row, a step that has nothing to multiply and so takes half the time.
        less: ``(B,)`` what is subtracted from a row's sums to give ``out``, or None.
        out: ``(B * T,)`` output, the sums.
        also: ``(B * T,)`` output, the sums without ``less`` and plus the values; None where that is ``out``.
        stats: ``(B, 6)`` output, which holds zeros: of the sums, but with ``less`` only which rows count.
        past: Whether to write past the cache.
    """
    rows, length = mask.shape
    width, valid = min(length, TILE), mask.reshape(-1)
    x = np.empty((LANES, width + _APART), rewards.dtype)
    steps = np.empty((LANES, width + _APART), rewards.dtype)
    packed = np.empty(width + 1, rewards.dtype)  # for _bring
    desks = np.empty((2, width + _APART), rewards.dtype)  # for what goes past the cache
    nothing = np.zeros(CHUNK, rewards.dtype)  # for _clear_past
    row, end, number = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    later, next_value = np.zeros(LANES, rewards.dtype), np.zeros(LANES, rewards.dtype)
    rate = np.ones(LANES, rewards.dtype)
    coming = 0
    while True:
        for i in range(LANES):
            if end[i] == 0:  # the lane is free
                b = _next_row(mask, coming, out, also, stats, nothing, past)
                row[i], coming, later[i] = b, b + 1, 0
                if b < rows:
                    end[i] = stats[b, EXTENT]
                    rate[i] = 1 if discount is None else discount[b if len(discount) > 1 else 0]
                    next_value[i] = 0 if values is None else last[b]
        if not end.any():
            settle()
            return
        holes, longest = False, 0
        for i in range(LANES):
            if end[i] > 0:
                b, low, high = row[i], _low(end[i]), end[i]
                dense = stats[b, NUMBER] == stats[b, EXTENT]
                number[i] = high - low if dense else count(mask[b, low:high])
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
                b, low = row[i], _low(end[i])
                start, size = b * length + low, end[i] - low
                y = piece(desks[0], 0, size) if past else piece(out, start, size)
                z = y if also is None else piece(desks[1], 0, size) if past else piece(also, start, size)
                v, off = None if values is None else values[b, low:], None if less is None else less[b]
                if number[i] == size:
                    _write(x[i], None, v, off, y, None if also is None else z, stats[b])
                else:
                    on = piece(valid, start, size)
                    _write(x[i], on, v, off, y, None if also is None else z, stats[b])
                if past:
                    put(out, start, start + size, y)
                    if also is not None:
                        put(also, start, start + size, z)
                end[i] = low
                if low == 0 and not np.isfinite(later[i] if less is None else later[i] - less[b]):
                    _exclude(b, values, mask, out, also, stats)


@compiled()
def _low(end):
    """Where the tile that ends there begins; 0 for a lane without a row, whose end is 0."""
    return max(end - 1, 0) // TILE * TILE


@compiled()
def _next_row(mask, b, out, also, stats, nothing, past):
    """The next row from b on that has a valid token; whatever stands behind its last one is 0."""
    rows, length = mask.shape
    while b < rows:
        stats[b, NUMBER], stats[b, EXTENT] = look(mask[b])
        start, stop = b * length + int(stats[b, EXTENT]), (b + 1) * length
        if past:
            _clear_past(start, stop, out, nothing)
            if also is not None:
                _clear_past(start, stop, also, nothing)
        else:
            for t in range(start, stop):
                out[numba.uintp(t)] = 0
                if also is not None:
                    also[numba.uintp(t)] = 0
        if stats[b, NUMBER] > 0:
            return b
        b += 1
    return rows


@compiled()
def _clear_past(start, stop, out, nothing):
    for low in range(start, stop, CHUNK):
        put(out, low, min(low + CHUNK, stop), nothing)


@compiled()
def _exclude(b, values, mask, out, also, stats):
    """What is not finite has come through to the first token: nothing is left but the values, where finite."""
    stats[b, EXTENT:] = 0
    start = b * mask.shape[1]
    for t in range(mask.shape[1]):
        out[start + t] = 0
        if also is not None:
            also[start + t] = 0
            if values is not None and mask[b, t] and np.isfinite(values[b, t]):
                also[start + t] = values[b, t]


@compiled()
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


@compiled()
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


@compiled()
def _silence(mask, x):
    """0 where a token is masked."""
    for t in range(len(mask)):
        x[t] = x[t] if mask[t] else 0


@compiled()
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


@compiled()
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


@compiled(fastmath={"reassoc"})  # several partial sums at a time; what is written is one operation each
def _write(x, mask, values, less, out, also, stats):
    """Write a tile's sums out, and add them to the row's statistics; the pivot is the last token of the first tile.

    Without a mask, which is the tile's, all tokens are valid.
    """
    if stats[WRITTEN] == 0:
        stats[WRITTEN] = 1
        stats[PIVOT] = x[len(out) - 1]  # the row's last valid token
    pivot, total, squares = stats[PIVOT], 0.0, 0.0
    nothing = x.dtype.type(pivot)
    for t in range(len(out)):
        on = True if mask is None else mask[t]
        y = x[t] if less is None else x[t] - less
        out[t] = y if on else 0
        if less is None:
            apart = np.float64(y if on else nothing) - pivot
            total += apart
            squares += apart * apart
    if also is not None:
        for t in range(len(out)):
            on = True if mask is None else mask[t]
            y = x[t] if values is None else x[t] + values[t]
            also[t] = y if on else 0
    stats[TOTAL] += total
    stats[SQUARES] += squares
