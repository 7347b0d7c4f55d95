# mypy: disable-error-code="no-untyped-def, untyped-decorator"
r"""GAE in one reading of the batch on a CUDA device: one program per row, the recursion as an associative scan.

A token maps what stands right of it, the next value V' and the running advantage A', to its own:

.. math::
    (A', V') \mapsto (d A' + \gamma V' + r - V, \; V) \quad \text{valid}, \qquad
    (A', V') \mapsto (A', V') \quad \text{masked}

All of these are of the form :math:`(a A' + g V' + b, \; h ? v : V')`, and two of them one after the other are again. So a
block of tokens is scanned in log2 steps instead of one by one, holes included and exact: a masked token is the identity.
Blocks of a row go from right to left and hand on the pair. Sums for whitening are taken on the way, and nothing makes
the host wait.
"""

import triton
import triton.language as tl

__all__ = ["gae_kernel"]


@triton.jit
def _after(a1, g1, b1, h1, v1, a2, g2, b2, h2, v2):
    """The map of what stands left (2) after the map of what stands right (1)."""
    a = a2 * a1
    g = a2 * g1 + (1.0 - h1) * g2
    b = a2 * b1 + h1 * v1 * g2 + b2
    v = h2 * v2 + (1.0 - h2) * v1
    h = h1 + h2 - h1 * h2
    return a, g, b, h, v


@triton.jit
def gae_kernel(
    rewards, values, mask, last, advantages, targets, stats,
    length, reward_stride, value_stride, mask_stride, gamma, decay, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. ``stats`` is ``(B, 5)``: written, number, pivot, total and squares, as in ``rows.Rows``."""
    row = tl.program_id(0).to(tl.int64)
    next_value = tl.load(last + row)
    later = next_value * 0.0
    finite = later == 0.0
    later = tl.where(finite, later, 0.0)
    pivot = 0.0
    number = 0.0
    total = tl.zeros((), tl.float64)
    squares = tl.zeros((), tl.float64)
    block_count = tl.cdiv(length, BLOCK)
    lanes = tl.arange(0, BLOCK)
    for k in range(block_count):
        at = (block_count - 1 - k) * BLOCK + lanes
        inside = at < length
        on = tl.load(mask + row * mask_stride + at, mask=inside, other=0) != 0
        v = tl.load(values + row * value_stride + at, mask=inside & on, other=0.0).to(tl.float32)
        r = tl.load(rewards + row * reward_stride + at, mask=inside & on, other=0.0).to(tl.float32)
        held = on.to(tl.float32)
        maps = (tl.where(on, decay, 1.0), tl.where(on, gamma, 0.0), r - v, held, v)
        a, g, b, h, x = tl.associative_scan(maps, 0, _after, reverse=True)
        y = tl.where(on, a * later + g * next_value + b, 0.0)
        tl.store(advantages + row * length + at, y, mask=inside)
        tl.store(targets + row * length + at, y + v, mask=inside)
        first = lanes == 0
        later = tl.sum(tl.where(first, a * later + g * next_value + b, 0.0), 0)
        seen = tl.sum(tl.where(first, h, 0.0), 0)
        next_value = seen * tl.sum(tl.where(first, x, 0.0), 0) + (1.0 - seen) * next_value
        here = tl.sum(held, 0)
        rightmost = tl.max(tl.where(on, lanes, -1), 0)
        new = tl.sum(tl.where(lanes == rightmost, y, 0.0), 0)
        pivot = tl.where((number == 0.0) & (here > 0.0), new, pivot)
        apart = tl.where(on, y - pivot, 0.0)
        number += here
        total += tl.sum(apart, 0).to(tl.float64)
        squares += tl.sum(apart * apart, 0).to(tl.float64)
    place = stats + row * 5
    tl.store(place, number)
    tl.store(place + 1, number)
    tl.store(place + 2, pivot)
    tl.store(place + 3, total)
    tl.store(place + 4, squares)
    # A number that is not finite has come through to the first token: then the row is excluded, and written again.
    bad = (number > 0.0) & ((later != later) | (tl.abs(later) == float("inf")) | (finite == 0))
    if bad:
        for k in range(block_count):
            at = k * BLOCK + lanes
            inside = at < length
            on = tl.load(mask + row * mask_stride + at, mask=inside, other=0) != 0
            v = tl.load(values + row * value_stride + at, mask=inside & on, other=0.0).to(tl.float32)
            fit = (v == v) & (tl.abs(v) != float("inf"))
            tl.store(advantages + row * length + at, tl.zeros((BLOCK,), tl.float32), mask=inside)
            tl.store(targets + row * length + at, tl.where(fit, v, 0.0), mask=inside)
        tl.store(place + 1, 0.0)
        tl.store(place + 2, 0.0)
        tl.store(place + 3, 0.0)
        tl.store(place + 4, 0.0)
