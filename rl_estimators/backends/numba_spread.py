# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""Numbers written to every token.

What goes past the cache, see :mod:`rl_estimators.backends.numba_memory`, is computed a chunk at a time on a desk, which
stays in the first-level cache, and put in its place from there. The mask of a row whose valid tokens all stand first is
not read again.
"""

import numpy as np

from rl_estimators.backends.numba_compile import compiled
from rl_estimators.backends.numba_memory import CHUNK, ask, piece, put, settle
from rl_estimators.backends.numba_sums import EXTENT, NUMBER

__all__ = ["spread_rows", "standardise_rows"]


@compiled()
def standardise_rows(x, mask, stats, pivot, shift, scale, out, past, in_place):
    """(x - pivot - shift) scale on valid tokens of rows that count, 0 elsewhere; ``in_place``: out is x."""
    length, numbers, valid, target = x.shape[1], x.reshape(-1), mask.reshape(-1), out.reshape(-1)
    desk = np.empty(CHUNK, x.dtype)
    for b in range(len(x)):
        number, extent = int(stats[b, NUMBER]), int(stats[b, EXTENT])
        for low in range(0, length, CHUNK):
            start, size = b * length + low, min(CHUNK, length - low)
            y, on = piece(numbers, start, size), piece(valid, start, size)
            z = piece(desk, 0, size) if past or in_place else piece(target, start, size)
            ask(numbers, start + CHUNK, start + 2 * CHUNK)
            if number == extent:
                here = min(max(number - low, 0), size)
                for t in range(here):
                    z[t] = (y[t] - pivot - shift) * scale
                z[here:] = 0
            else:
                for t in range(size):
                    z[t] = (y[t] - pivot - shift) * scale if on[t] else 0
            if past:
                put(target, start, start + size, desk)
            elif in_place:
                for t in range(size):
                    y[t] = z[t]
    settle()


@compiled()
def spread_rows(x, mask, stats, out, past):
    """Each row's number on its valid tokens, 0 elsewhere."""
    length, valid, target = mask.shape[1], mask.reshape(-1), out.reshape(-1)
    desk = np.empty(CHUNK, x.dtype)
    for b in range(len(mask)):
        number, extent, one = int(stats[b, NUMBER]), int(stats[b, EXTENT]), x[b]
        for low in range(0, length, CHUNK):
            start, size = b * length + low, min(CHUNK, length - low)
            on = piece(valid, start, size)
            z = piece(desk, 0, size) if past else piece(target, start, size)
            if number == extent:
                here = min(max(number - low, 0), size)
                z[:here] = one
                z[here:] = 0
            else:
                for t in range(size):
                    z[t] = one if on[t] else 0
            if past:
                put(target, start, start + size, desk)
    settle()
