# mypy: disable-error-code="no-untyped-def, untyped-decorator"
r"""The recursions in one reading of the batch on a CUDA device: one program per row, each an associative scan.

A step of a discounted sum is a map :math:`y' \mapsto a y' + b`, with a = d and b = x on a valid token and the identity on a
masked one. Two of them one after the other are such a map again, so a block of tokens is scanned in log2 steps instead of
one by one, holes included and exact.

So is GAE. What a token adds to the one left of it, :math:`u = d A + \gamma V`, follows from what it got itself:

.. math::
    A_k = u_{k+1} + r_k - V_k, \qquad u_k = d \, u_{k+1} + d \, r_k + (\gamma - d) V_k, \qquad
    u_{n+1} = \gamma V_{n+1}

This is the lambda-return less the value; with lambda = 1 no value enters u, and large ones cost no digits. A block's maps are
those of the tokens one further right, so that each token finds what it gets.

Blocks of a row go from right to left and hand on what they end in. The statistics are taken on the way, and nothing makes
the host wait. If a sum is not finite the row is excluded, and written again.
"""

import triton
import triton.language as tl

from rl_estimators.backends.triton_sums import add_block, no_block, odd, store_row

__all__ = ["gae_kernel", "returns_kernel"]


@triton.jit
def _after(a1, b1, a2, b2):
    """The map of what stands left (2) after the map of what stands right (1)."""
    return a2 * a1, a2 * b1 + b2


@triton.jit
def _token(rewards, values, mask, at, length):
    """Whether tokens of a row are valid, their rewards and values; 0 where they are not."""
    on = tl.load(mask + at, mask=at < length, other=0) != 0
    r = tl.load(rewards + at, mask=on, other=0.0).to(tl.float32)
    v = tl.load(values + at, mask=on, other=0.0).to(tl.float32)
    return on, r, v


@triton.jit
def gae_kernel(
    rewards, values, mask, last, advantages, targets, written, counts, sums,
    length, reward_stride, value_stride, mask_stride, gamma, decay, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; without ``last`` nothing follows it."""
    row = tl.program_id(0).to(tl.int64)
    rewards += row * reward_stride
    values += row * value_stride
    mask += row * mask_stride
    advantages += row * length
    targets += row * length
    later = tl.zeros((), tl.float32)
    if last is not None:
        later = gamma * tl.load(last + row)
    extent, pivot, number, total, squares = no_block(BLOCK)
    block_count = tl.cdiv(length, BLOCK)
    lanes = tl.arange(0, BLOCK)
    for k in range(block_count):
        at = (block_count - 1 - k) * BLOCK + lanes
        inside = at < length
        on, r, v = _token(rewards, values, mask, at, length)
        right, reward, value = _token(rewards, values, mask, at + 1, length)
        b = decay * reward + (gamma - decay) * value
        a, b = tl.associative_scan((tl.where(right, decay, 1.0), b), 0, _after, reverse=True)
        got = a * later + b
        y = tl.where(on, got + (r - v), 0.0)
        tl.store(advantages + at, y, mask=inside)
        tl.store(targets + at, y + v, mask=inside)
        extent, pivot, number, total, squares = add_block(y, on, at, extent, pivot, number, total, squares)
        later = tl.sum(tl.where(lanes == 0, got, 0.0), 0)
    apart = tl.sum(total, 0)
    excluded = odd(apart)  # as one of the numbers is then: in fp64 they cannot overflow
    store_row(written, counts, sums, tl.sum(number, 0), extent, pivot, apart, tl.sum(squares, 0), excluded)
    if excluded:
        for k in range(block_count):
            at = k * BLOCK + lanes
            inside = at < length
            _, _, v = _token(rewards, values, mask, at, length)
            tl.store(advantages + at, tl.zeros((BLOCK,), tl.float32), mask=inside)
            tl.store(targets + at, tl.where(odd(v), 0.0, v), mask=inside)


@triton.jit
def returns_kernel(
    rewards, mask, rates, less, ahead, totals, written, counts, sums,
    length, reward_stride, mask_stride, discount, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; ``rates`` stands in for ``discount`` where there is one, and without ``less`` there are no ``totals``."""
    row = tl.program_id(0).to(tl.int64)
    rewards += row * reward_stride
    mask += row * mask_stride
    ahead += row * length
    totals += row * length
    rate = discount
    if rates is not None:
        rate = tl.load(rates + row)
    baseline = tl.zeros((), tl.float32)
    if less is not None:
        baseline = tl.load(less + row)
    later = tl.zeros((), tl.float32)
    extent, pivot, number, total, squares = no_block(BLOCK)
    block_count = tl.cdiv(length, BLOCK)
    lanes = tl.arange(0, BLOCK)
    for k in range(block_count):
        at = (block_count - 1 - k) * BLOCK + lanes
        inside = at < length
        on = tl.load(mask + at, mask=inside, other=0) != 0
        r = tl.load(rewards + at, mask=on, other=0.0).to(tl.float32)
        a, b = tl.associative_scan((tl.where(on, rate, 1.0), r), 0, _after, reverse=True)
        y = a * later + b
        later = tl.sum(tl.where(lanes == 0, y, 0.0), 0)
        y = tl.where(on, y, 0.0)
        tl.store(ahead + at, tl.where(on, y - baseline, 0.0), mask=inside)
        if less is not None:
            tl.store(totals + at, y, mask=inside)
        extent, pivot, number, total, squares = add_block(y, on, at, extent, pivot, number, total, squares)
    excluded = odd(later - baseline)  # what is not finite has come through to the first token
    apart = tl.sum(total, 0)
    store_row(written, counts, sums, tl.sum(number, 0), extent, pivot, apart, tl.sum(squares, 0), excluded)
    if excluded:
        nothing = tl.zeros((BLOCK,), tl.float32)
        for k in range(block_count):
            at = k * BLOCK + lanes
            tl.store(ahead + at, nothing, mask=at < length)
            if less is not None:
                tl.store(totals + at, nothing, mask=at < length)
