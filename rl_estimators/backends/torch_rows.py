"""The kernels in plain torch, for every device and dtype.

Each works through the batch in blocks of rows, small enough to stay in the processor's second-level cache from the
first operation to the last, and so needs a few MiB beyond its outputs, whatever the batch's size. Rows that are
longer than a block are read in pieces, from right to left.

Masks with holes are squeezed: valid tokens move to the row's start, are scanned as if nothing had been between them, and
go back. On the CPU a block is looked at first, as most have no holes. Elsewhere the look would make the device wait.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rl_estimators.backends.rows import Rows, Scan, as_work, blocks, empty, work_dtype
from rl_estimators.backends.torch_scan import padded, reverse_scan

__all__ = [
    "block_elements",
    "discounted_sum",
    "gae",
    "keep",
    "mask_bits",
    "moments",
    "returns",
    "scores",
    "spread",
    "standardise",
]

_PIECE = 1 << 17  # columns that are read at once
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Packed(NamedTuple):
    """Where the valid tokens of a piece of rows stand.

    Attributes:
        mask: ``(R, W)`` bool.
        number: ``(R,)`` how many.
        place: ``(R, W)`` each valid token's number from the left, W for all others; None if that changes nothing.
    """

    mask: Tensor
    number: Tensor
    place: Tensor | None


def _pack(mask: Tensor) -> Packed:
    number, width = mask.sum(-1), mask.shape[1]
    if mask.device.type == "cpu":
        first = torch.arange(width) < number[:, None]
        if torch.equal(mask, first):
            return Packed(mask, number, None)
    # Valid tokens from here on, as a discounted sum: 6 ms for 1024 x 8192, where cumsum takes 49.
    flags = mask.new_zeros(len(mask), padded(width), dtype=torch.float32)
    flags[:, :width] = mask
    ahead = reverse_scan(flags, 1.0)[:, :width]
    return Packed(mask, number, torch.where(mask, number[:, None] - ahead, width).long())


def _squeeze(x: Tensor, packed: Packed) -> Tensor:
    """``(R, L)``, L as :func:`reverse_scan` takes it; ``x`` is 0 off the mask, and so is the rest of the row."""
    rows, width = x.shape
    spare = packed.place is not None
    if not spare and padded(width) == width:
        return x
    out = x.new_zeros(rows, padded(width + spare))
    if packed.place is None:
        out[:, :width] = x
        return out
    return out.scatter_(1, packed.place, x)


def _unsqueeze(y: Tensor, packed: Packed) -> Tensor:
    """Back to ``(R, W)``; what is masked reads the 0 in column W."""
    return y[:, : packed.mask.shape[1]] if packed.place is None else y.gather(1, packed.place)


def _add_at_end(x: Tensor, packed: Packed, amount: Tensor) -> None:
    """Add ``(R,)`` numbers to each row's last valid token: how what stands further right enters a piece."""
    end = (packed.number - 1).clamp(min=0)[:, None]
    x.scatter_add_(1, end, torch.where(packed.number > 0, amount, 0)[:, None])


def block_elements(x: Tensor) -> int:
    """Numbers in a block: about what the second-level cache holds, more where threads share it, all on a device.

    Measured for ``gae`` at 1024 x 8192 on one core: 124 ms with 2^14, 70 with 2^16, 56 with 2^18. A block takes up
    to 50 bytes a number while it is worked on.
    """
    if x.device.type != "cpu":
        return max(x.numel(), 1)
    return 1 << (18 if torch.get_num_threads() == 1 else 19)


def _pieces(length: int) -> list[slice]:
    """Columns from right to left."""
    return [slice(max(end - _PIECE, 0), end) for end in range(length, 0, -_PIECE)] or [slice(0, 0)]


def mask_bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """All bits set where ``mask`` is true, for :func:`keep`."""
    return mask.to(_BITS[dtype]).neg_()


def keep(x: Tensor, bits: Tensor, out: Tensor | None = None) -> Tensor:
    """``x`` where the mask is true and 0 elsewhere: a choice, as ``where`` is, and no product that NaN survives.

    On masks with holes ``where`` takes 14 ms for 1024 x 8192, a branch for each token, and this 1.
    """
    if out is None:
        return x.view(bits.dtype).bitwise_and(bits).view(x.dtype)
    torch.bitwise_and(x.view(bits.dtype), bits, out=out.view(bits.dtype))
    return out


def _all_finite(x: Tensor) -> bool:
    """Never asked on a device, which would have to wait for the answer."""
    return x.device.type == "cpu" and bool(x.isfinite().all())


def _rows(x: Tensor, mask: Tensor, on: Tensor, pivot: Tensor) -> Rows:
    """Statistics of a block's numbers under ``mask``: what is valid, ``on``, less the responses that are excluded."""
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # mps has no fp64
    total = squares = pivot.new_zeros(len(pivot), dtype=wide)
    for here in _pieces(x.shape[1]):
        apart = keep(x[:, here] - pivot[:, None], mask_bits(mask[:, here], x.dtype))
        total = total + apart.sum(-1).to(wide)
        squares = squares + torch.linalg.vector_norm(apart, dim=-1).to(wide).square()
    number = mask.sum(-1)
    written = number > 0 if mask is on else on.any(-1)  # any takes three times as long as sum
    return Rows(written, number, pivot.to(wide), total, squares)


def _join(rows: list[Rows]) -> Rows:
    """All blocks' statistics; nobody has looked at the extent."""
    if len(rows) == 1:
        return rows[0]
    written, number, *sums = (torch.cat(parts) for parts in zip(*(row[:5] for row in rows), strict=True))
    return Rows(written, number, *sums)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    dtype = work_dtype(rewards, values, last)
    advantages, targets = (empty(rewards.shape, dtype, rewards.device, place) for place in range(2))
    end = as_work(last, rewards, dtype)
    found = []
    for some in blocks(rewards.shape, block_elements(rewards)):
        block = (rewards[some], values[some], end[some], gamma, decay, advantages[some], targets[some])
        on = counted = mask[some] != 0
        first = _gae_block(on, counted, *block)
        if not _all_finite(first):  # what is not finite has come through to the first token
            counted = on & first.isfinite()[:, None]
            first = _gae_block(on, counted, *block)
        found.append(_rows(advantages[some], counted, on, first))
    return Scan(advantages, targets, _join(found))


def _gae_block(
    on: Tensor,
    counted: Tensor,
    rewards: Tensor,
    values: Tensor,
    end: Tensor,
    gamma: float,
    decay: float,
    out: Tensor,
    targets: Tensor,
) -> Tensor:
    """One block of rows; returns the advantage of each row's first token.

    ``next_value`` and ``later`` are the value and the advantage of what follows on the right.
    """
    next_value, later = end, torch.zeros_like(end)
    for here in _pieces(on.shape[1]):
        valid = counted[:, here]
        packed = _pack(valid)
        bits = mask_bits(valid, out.dtype)
        old = value = keep(values[:, here].to(out.dtype), bits)
        if counted is not on:  # an excluded response keeps its values as targets, where finite
            old = torch.where(on[:, here], values[:, here], 0).to(out.dtype).nan_to_num(0.0, 0.0, 0.0)
        value = _squeeze(value, packed)
        error = _squeeze(keep(rewards[:, here].to(out.dtype), bits), packed) - value
        error[:, :-1].add_(value[:, 1:], alpha=gamma)
        _add_at_end(error, packed, gamma * next_value + decay * later)
        scanned = reverse_scan(error, decay)
        out[:, here] = _unsqueeze(scanned, packed)
        torch.add(out[:, here], old, out=targets[:, here])
        some = packed.number > 0
        next_value = torch.where(some, value[:, 0], next_value)
        later = torch.where(some, scanned[:, 0], later)
    return later


def returns(
    rewards: Tensor,
    mask: Tensor,
    discount: float | Tensor,
    baselines: Tensor | None = None,
) -> Scan:
    """See :func:`rl_estimators.backends.returns`."""
    dtype, device = work_dtype(rewards, baselines), rewards.device
    totals = empty(rewards.shape, dtype, device, 0)
    ahead = totals if baselines is None else empty(rewards.shape, dtype, device, 1)
    less = as_work(baselines, rewards, dtype)
    found = []
    for some in blocks(rewards.shape, block_elements(rewards)):
        on = counted = mask[some] != 0
        first = _scan_block(rewards[some], on, _rate(discount, some, dtype), totals[some]) - less[some]
        if not _all_finite(first):
            fit = first.isfinite()
            counted = on & fit[:, None]
            first = _scan_block(rewards[some], counted, _rate(discount, some, dtype), totals[some])
            first = torch.where(fit, first - less[some], 0)
        if baselines is not None:
            keep(totals[some] - less[some, None], mask_bits(counted, dtype), ahead[some])
        if baselines is None:
            found.append(_rows(totals[some], counted, on, first))
        else:
            number = counted.sum(-1)
            written = number > 0 if counted is on else on.any(-1)
            found.append(Rows(written, number, first, first, first))
    return Scan(ahead, totals, _join(found))


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.discounted_sum`."""
    out = empty(x.shape, x.dtype, x.device)
    for some in blocks(x.shape, block_elements(x)):
        _scan_block(x[some], mask[some] != 0, _rate(discount, some, x.dtype), out[some])
    return out


def _rate(discount: float | Tensor, some: slice, dtype: torch.dtype) -> float | Tensor:
    return discount[some].to(dtype) if isinstance(discount, Tensor) else discount


def _scan_block(x: Tensor, mask: Tensor, discount: float | Tensor, out: Tensor) -> Tensor:
    """Discounted sums of one block of rows; returns those of each row's first token."""
    later = out.new_zeros(len(x))
    for here in _pieces(x.shape[1]):
        valid = mask[:, here]
        if not isinstance(discount, Tensor) and discount == 1:  # a hole adds 0, and nothing else
            packed = Packed(valid, torch.full((len(x),), valid.shape[1], device=x.device), None)
        else:
            packed = _pack(valid)
        bits = mask_bits(valid, out.dtype)
        piece = _squeeze(keep(x[:, here].to(out.dtype), bits), packed)
        _add_at_end(piece, packed, discount * later)
        scanned = reverse_scan(piece, discount)
        keep(_unsqueeze(scanned, packed), bits, out[:, here])
        later = torch.where(packed.number > 0, scanned[:, 0], later)
    return later


def moments(x: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.moments`."""
    found = []
    for some in blocks(x.shape, block_elements(x)):
        on, here = mask[some] != 0, x[some]
        pivot, starts = here[:, 0], on[:, 0]
        if x.device.type != "cpu" or not starts.all():  # a row may start with a hole, or have no valid token
            pivot = here.gather(1, on.byte().argmax(-1, keepdim=True))[:, 0]
            pivot = torch.where(on.any(-1), pivot, 0)
        found.append(_rows(here, on, on, pivot))
    return _join(found)


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Tensor, shift: Tensor, scale: Tensor, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    for some in blocks(x.shape, block_elements(x)):
        apart = torch.sub(x[some], pivot).sub_(shift).mul_(scale)
        on = (mask[some] != 0) & rows.counts[some, None]
        keep(apart, mask_bits(on, x.dtype), out[some])
    return out


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.scores`."""
    dtype = work_dtype(rewards)
    wide = torch.float32 if rewards.device.type == "mps" else torch.float64
    found = []
    for some in blocks(rewards.shape, block_elements(rewards)):
        on = mask[some] != 0
        total = keep(rewards[some].to(dtype), mask_bits(on, dtype)).sum(-1, dtype=wide)
        number = on.sum(-1)
        written = number > 0
        if not _all_finite(total.to(dtype)):
            fit = total.to(dtype).isfinite()
            total, number = torch.where(fit, total, 0), torch.where(fit, number, 0)
        zero = torch.zeros_like(total)
        found.append(Rows(written, number, zero, total, zero))
    return _join(found)


def spread(x: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    out = empty(mask.shape, x.dtype, x.device)
    for some in blocks(mask.shape, block_elements(mask)):
        keep(x[some, None], mask_bits(mask[some] != 0, x.dtype), out[some])
    return out
