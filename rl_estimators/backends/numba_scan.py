# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The recursions themselves, compiled: one step after the other, as they are written, and so equal to them to the bit.

    y_t = x_t + d y_{t+1}

Each step waits for the one before it: a multiplication and an addition, some six cycles, in which a core could do
dozens of both. So four responses advance side by side. That needs their numbers close together: read straight from the
batch, whose rows of 2^k tokens all start at the same place in a page, twenty streams would evict each other from
the first-level cache (measured: no gain over one row at a time). So a tile of each row is first copied to a small
scratch, cleaned on the way; the four scratch rows are scanned; each is written out again. At 1024 x 8192 the scan
takes 3 ms instead of 12, and the copying is what a processor does at the speed of its memory.

No flag that would let the compiler fuse or reorder is set, but in :func:`_sums`, whose numbers are statistics.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

__all__ = [
    "FIELDS",
    "LANES",
    "gae_rows",
    "return_rows",
    "score_rows",
    "spread_rows",
    "standardise_rows",
    "sum_rows",
]

F = TypeVar("F", bound=Callable[..., Any])

LANES = 4
TILE = 4096  # tokens; 4 rows of it with their masks take 80 KiB
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


@_compiled()
def _advance(x, valid, discount, later, width):
    """Scan four scratch rows from right to left; a masked token is no step."""
    y0, y1, y2, y3 = later[0], later[1], later[2], later[3]
    d0, d1, d2, d3 = discount[0], discount[1], discount[2], discount[3]
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    v0, v1, v2, v3 = valid[0], valid[1], valid[2], valid[3]
    for k in range(width):
        t = numba.uintp(width - 1 - k)
        s0 = x0[t] + d0 * y0
        s1 = x1[t] + d1 * y1
        s2 = x2[t] + d2 * y2
        s3 = x3[t] + d3 * y3
        y0 = s0 if v0[t] else y0
        y1 = s1 if v1[t] else y1
        y2 = s2 if v2[t] else y2
        y3 = s3 if v3[t] else y3
        x0[t] = y0
        x1[t] = y1
        x2[t] = y2
        x3[t] = y3
    later[0], later[1], later[2], later[3] = y0, y1, y2, y3


@_compiled(fastmath={"reassoc"})  # several partial sums at a time
def _sums(x, valid, width, pivot):
    """Sum and sum of squares of what is valid, less the pivot."""
    total, squares = 0.0, 0.0
    for t in range(width):
        apart = np.float64(x[t]) - pivot if valid[t] else 0.0
        total += apart
        squares += apart * apart
    return total, squares


@_compiled()
def _count(x, valid, width, number, stats):
    """Add a tile to its row's statistics; the pivot is the first valid number that comes along."""
    if number == 0:
        return
    if stats[NUMBER] == 0:
        t = width - 1
        while not valid[t]:
            t -= 1
        stats[PIVOT] = x[t]
    total, squares = _sums(x, valid, width, stats[PIVOT])
    stats[NUMBER] += number
    stats[TOTAL] += total
    stats[SQUARES] += squares


@_compiled()
def _read(numbers, mask, x, valid, low, stats):
    """Copy a tile to scratch; returns how many of its tokens are valid. Numbers where none is are left alone."""
    number = 0
    for t in range(len(mask)):
        number += mask[t] != 0
    if number == 0:
        valid[:] = False
        return number
    for t in range(len(mask)):
        x[t] = numbers[t]
        valid[t] = mask[t] != 0
    if stats[EXTENT] == 0:  # the rightmost tile comes first
        t = len(mask)
        while not valid[t - 1]:
            t -= 1
        stats[EXTENT] = low + t
    return number


@_compiled()
def _td_errors(x, valid, values, gamma, next_value, number, following):
    """Turn rewards into r + gamma V' - V on valid tokens; returns the value that the tile on the left sees next."""
    width = len(values)
    if number == width:  # most tiles: no step waits for another
        for t in range(width - 1):
            x[t] = x[t] + gamma * values[t + 1] - values[t]
        x[width - 1] = x[width - 1] + gamma * next_value - values[width - 1]
        return values[0]
    if number > 0:
        for k in range(width):  # as little as possible in the loop that must go step by step
            t = numba.uintp(width - 1 - k)
            following[t] = next_value
            next_value = values[t] if valid[t] else next_value
        for t in range(width):
            x[t] = x[t] + gamma * following[t] - values[t]
    return next_value


@_compiled()
def gae_rows(rewards, values, mask, last, gamma, decay, advantages, targets, stats):
    """GAE on raw inputs. Arrays are ``(B, T)``, ``last`` is ``(B,)``, ``stats`` is ``(B, 5)`` and holds zeros."""
    rows, length = rewards.shape
    x = np.zeros((LANES, TILE + 64), rewards.dtype)  # 64: the rows do not start at the same place in a page
    valid = np.zeros((LANES, TILE + 64), np.bool_)
    number = np.zeros(LANES, np.int64)
    following = np.zeros(TILE, rewards.dtype)
    decays = np.full(LANES, decay)
    next_value, later = np.zeros(LANES, rewards.dtype), np.zeros(LANES, rewards.dtype)
    for start in range(0, rows, LANES):
        lanes = min(LANES, rows - start)
        later[:] = 0
        next_value[:lanes] = last[start : start + lanes]
        for tile in range((length - 1) // TILE, -1, -1):
            low, high = tile * TILE, min(tile * TILE + TILE, length)
            width = high - low
            for i in range(lanes):
                b = start + i
                number[i] = _read(rewards[b, low:high], mask[b, low:high], x[i], valid[i], low, stats[b])
                next_value[i] = _td_errors(
                    x[i], valid[i], values[b, low:high], gamma, next_value[i], number[i], following
                )
            if number.any():
                _advance(x, valid, decays, later, width)
            for i in range(lanes):
                b = start + i
                _write_gae(x[i], valid[i], values[b, low:high], advantages[b, low:high], targets[b, low:high])
                _count(x[i], valid[i], width, number[i], stats[b])
        for i in range(lanes):
            b = start + i
            stats[b, WRITTEN] = stats[b, NUMBER] > 0
            if not np.isfinite(later[i]):  # what is not finite has come through to the first token
                stats[b, EXTENT:] = 0
                advantages[b] = 0
                for t in range(length):
                    targets[b, t] = values[b, t] if mask[b, t] != 0 and np.isfinite(values[b, t]) else 0


@_compiled()
def _write_gae(x, valid, values, advantages, targets):
    for t in range(len(values)):
        advantages[t] = x[t] if valid[t] else 0
        targets[t] = x[t] + values[t] if valid[t] else 0


@_compiled()
def return_rows(rewards, mask, discount, less, with_less, ahead, totals, stats):
    """Discounted sums on raw rewards, and what they are above ``less``; ``discount`` and ``less`` are ``(B,)``."""
    rows, length = rewards.shape
    x = np.zeros((LANES, TILE + 64), rewards.dtype)
    valid = np.zeros((LANES, TILE + 64), np.bool_)
    number = np.zeros(LANES, np.int64)
    rates, later = np.zeros(LANES, rewards.dtype), np.zeros(LANES, rewards.dtype)
    for start in range(0, rows, LANES):
        lanes = min(LANES, rows - start)
        later[:] = 0
        rates[:lanes] = discount[start : start + lanes]
        for tile in range((length - 1) // TILE, -1, -1):
            low, high = tile * TILE, min(tile * TILE + TILE, length)
            width = high - low
            for i in range(lanes):
                b = start + i
                number[i] = _read(rewards[b, low:high], mask[b, low:high], x[i], valid[i], low, stats[b])
            if number.any():
                _advance(x, valid, rates, later, width)
            for i in range(lanes):
                b = start + i
                _write(x[i], valid[i], totals[b, low:high])
                if with_less:
                    _write_less(x[i], valid[i], less[b], ahead[b, low:high])
                    stats[b, NUMBER] += number[i]
                else:
                    _count(x[i], valid[i], width, number[i], stats[b])
        for i in range(lanes):
            b = start + i
            stats[b, WRITTEN] = stats[b, NUMBER] > 0
            if not np.isfinite(later[i] - less[b]):
                stats[b, EXTENT:] = 0
                ahead[b] = 0
                totals[b] = 0


@_compiled()
def _write(x, valid, out):
    for t in range(len(out)):
        out[t] = x[t] if valid[t] else 0


@_compiled()
def _write_less(x, valid, less, out):
    for t in range(len(out)):
        out[t] = x[t] - less if valid[t] else 0


@_compiled()
def sum_rows(x, mask, stats):
    """Statistics of what is valid in each row of ``(B, T)`` numbers."""
    valid = np.zeros(TILE, np.bool_)
    kept = np.zeros(TILE, x.dtype)
    for b in range(len(x)):
        for tile in range((x.shape[1] - 1) // TILE, -1, -1):
            low, high = tile * TILE, min(tile * TILE + TILE, x.shape[1])
            number = _read(x[b, low:high], mask[b, low:high], kept, valid, low, stats[b])
            _count(kept, valid, high - low, number, stats[b])
        stats[b, WRITTEN] = stats[b, NUMBER] > 0


@_compiled()
def _extent(mask, number):
    """One beyond the last of ``number`` valid tokens."""
    t = len(mask)
    if number == 0:
        return 0
    while mask[t - 1] == 0:
        t -= 1
    return t


@_compiled()
def score_rows(rewards, mask, stats):
    """Each row's sum in fp64, as ``TOTAL`` with pivot 0; not finite in the rewards' dtype: the response is excluded."""
    score = np.zeros(1, rewards.dtype)
    for b in range(len(rewards)):
        total, number = _total(rewards[b], mask[b])
        stats[b, WRITTEN] = number > 0
        score[0] = total
        if np.isfinite(score[0]):
            stats[b, NUMBER] = number
            stats[b, TOTAL] = total
            stats[b, EXTENT] = _extent(mask[b], number)


@_compiled(fastmath={"reassoc"})  # several partial sums at a time
def _total(x, mask):
    total, number = 0.0, 0
    for t in range(len(x)):
        on = mask[t] != 0
        total += np.float64(x[t]) if on else 0.0
        number += on
    return total, number


@_compiled()
def standardise_rows(x, mask, number, extent, pivot, shift, scale, out):
    """(x - pivot - shift) scale on valid tokens of rows that count, 0 elsewhere; ``out`` may be ``x``.

    The mask of a row whose valid tokens all stand first is not read again.
    """
    for b in range(len(x)):
        if number[b] == extent[b] or number[b] == 0:
            for t in range(number[b]):
                out[b, t] = (x[b, t] - pivot - shift) * scale
            out[b, number[b] :] = 0
        else:
            _standardise(x[b], mask[b], pivot, shift, scale, out[b])


@_compiled()
def _standardise(x, mask, pivot, shift, scale, out):
    for t in range(len(x)):
        out[t] = (x[t] - pivot - shift) * scale if mask[t] != 0 else 0


@_compiled()
def spread_rows(x, mask, out):
    """Each row's number on its valid tokens, 0 elsewhere."""
    for b in range(len(mask)):
        number, row, to = x[b], mask[b], out[b]
        for t in range(len(row)):
            to[t] = number if row[t] != 0 else 0
