"""The kernels in plain torch, for every device and dtype.

Each works through the batch in blocks of rows, small enough to stay in the processor's cache from the first operation to
the last, and so needs a few MiB beyond its outputs, whatever the batch's size. What a block needs in between stands in
the same memory for all of them (:class:`Scratch`). Rows that are longer than a block are read in pieces, from right to
left.

Masks with holes are squeezed: valid tokens move to the row's start, are scanned as if nothing had been between them, and
go back. On the CPU a block is looked at first, as most have no holes. Elsewhere the look would make the device wait.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_estimators.backends.memory import empty
from rl_estimators.backends.rows import ALL, Number, Rows, Scan, as_work, blocks, inverse_std, work_dtype
from rl_estimators.backends.torch_scan import padded, reverse_scan

__all__ = [
    "Scratch",
    "as_bool",
    "block_elements",
    "cut",
    "discounted_sum",
    "gae",
    "keep",
    "mask_bits",
    "moments",
    "pack",
    "pooled",
    "returns",
    "scores",
    "spread",
    "standardise",
    "strays",
]

_PIECE = 1 << 17  # columns that are read at once
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Scratch:
    """Memory for what one block needs in between, used again by the next.

    Tensors of a MiB that come and go are handed back to the system, which then provides and clears the same pages over and
    over: a third of the time of ``gae`` at 1024 x 8192.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._shaped: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape that holds anything; the same memory for the same name and dtype."""
        found = self._shaped.get((name, dtype, shape))
        if found is None:
            size, kept = math.prod(shape), self._kept.get((name, dtype))
            if kept is None or len(kept) < size:  # what a later block needs is hardly ever larger
                kept = self._kept[name, dtype] = torch.empty(size, dtype=dtype, device=self._device)
            found = self._shaped[name, dtype, shape] = kept[:size].view(shape)
        return found


class Packed(NamedTuple):
    """Where the valid tokens of a piece of rows stand.

    Attributes:
        bits: ``(R, W)``, see :func:`keep`.
        place: ``(R, W)`` each valid token's number from the left, W for all others; None if that changes nothing.
    """

    bits: Tensor
    place: Tensor | None


def _pack(mask: Tensor, dtype: torch.dtype, scratch: Scratch) -> Packed:
    bits = mask_bits(mask, dtype, scratch)
    if mask.device.type == "cpu" and not _has_holes(mask, scratch):
        return Packed(bits, None)
    # Valid tokens from here on, as a discounted sum: 5 ms for 1024 x 8192, where cumsum takes 49.
    rows, width = mask.shape
    flags, ahead = (scratch(name, (rows, padded(width)), torch.float32) for name in ("flags", "ahead"))
    flags[:, width:] = 0
    flags[:, :width] = mask
    reverse_scan(flags, 1.0, ahead)
    # number - ahead on valid tokens and W elsewhere, as a choice by bits: see keep
    shifted = torch.sub(_number(bits)[:, None] - width, ahead[:, :width], out=flags[:, :width])
    keep(shifted, bits if dtype == torch.float32 else mask_bits(mask, torch.float32, scratch), shifted)
    return Packed(bits, scratch("place", (rows, width), torch.int64).copy_(shifted.add_(width)))


def _has_holes(mask: Tensor, scratch: Scratch) -> bool:
    """Whether a valid token stands right of a masked one; asked on the CPU only."""
    rows, width = mask.shape
    if rows == 0 or width < 2:
        return False
    valid = mask.numpy()
    rises = np.greater(
        valid[:, 1:], valid[:, :-1], out=scratch("rises", (rows, width - 1), torch.bool).numpy()
    )
    return bool(rises.any())


def _number(bits: Tensor) -> Tensor:
    """``(R,)`` how many tokens are valid: a quarter of the time that the sum of a bool mask takes."""
    return bits.sum(-1, dtype=bits.dtype).neg_().long()


def _load(x: Tensor, packed: Packed, dtype: torch.dtype, scratch: Scratch, name: str) -> Tensor:
    """``(R, L)`` with L as :func:`reverse_scan` takes it: x where it is valid and 0 elsewhere."""
    rows, width = x.shape
    out = scratch(name, (rows, padded(width)), dtype)
    if out.shape == x.shape:
        return cut(x, packed.bits, out)
    out[:, width:] = 0
    cut(x, packed.bits, out[:, :width])
    return out


def _squeeze(x: Tensor, packed: Packed, scratch: Scratch, name: str) -> Tensor:
    """What :func:`_load` gave, without holes."""
    if packed.place is None:
        return x
    rows, width = packed.place.shape
    out = scratch(name, (rows, padded(width + 1)), x.dtype).zero_()
    return out.scatter_(1, packed.place, x[:, :width])


def _add_at_end(x: Tensor, bits: Tensor, amount: Tensor) -> None:
    """Add ``(R,)`` numbers to each row's last valid token: how what stands further right enters a squeezed piece."""
    number = _number(bits)
    x.scatter_add_(1, (number - 1).clamp_(min=0)[:, None], torch.where(number > 0, amount, 0)[:, None])


def _first(bits: Tensor, here: Tensor, right: Tensor | None) -> Tensor:
    """``(R,)`` what a row begins with: here, where it is 0 without a valid token, or else further right."""
    return here if right is None else torch.where(_number(bits) > 0, here, right)


def _scan(x: Tensor, packed: Packed, discount: float | Tensor, out: Tensor, scratch: Scratch) -> Tensor:
    """Scan a squeezed piece and write it to ``(R, W)`` out; returns ``(R,)`` what stands first."""
    if packed.place is None and out.shape == x.shape and out.is_contiguous():
        return reverse_scan(x, discount, out)[:, 0]
    scanned = reverse_scan(x, discount, scratch("scanned", x.shape, x.dtype))
    if packed.place is None:
        out.copy_(scanned[:, : out.shape[1]])
    else:
        torch.gather(scanned, 1, packed.place, out=out)  # what is masked reads the 0 in column W
    return scanned[:, 0]


def block_elements(x: Tensor) -> int:
    """Numbers in a block: about what the second-level cache holds, more where threads share it, all on a device."""
    if x.device.type != "cpu":
        return max(x.numel(), 1)
    return 1 << (18 if torch.get_num_threads() == 1 else 19)


def _pieces(length: int) -> list[slice]:
    """Columns from right to left."""
    if length <= _PIECE:
        return [ALL]
    return [slice(max(end - _PIECE, 0), end) for end in range(length, 0, -_PIECE)]


def _columns(x: Tensor, here: slice) -> Tensor:
    return x if here is ALL else x[:, here]


def as_bool(mask: Tensor, scratch: Scratch) -> Tensor:
    """A mask of any dtype as bool."""
    return mask if mask.dtype == torch.bool else scratch("mask", mask.shape, torch.bool).copy_(mask)


def mask_bits(
    mask: Tensor, dtype: torch.dtype, scratch: Scratch | None = None, out: Tensor | None = None
) -> Tensor:
    """All bits set where ``mask``, which is bool, is true: for :func:`keep`; in memory of that dtype, if there is any."""
    # -1, all bits, is made of the ones while they are bytes: a quarter of the memory
    ones = mask.view(torch.int8)
    if scratch is None:
        return ones.neg().to(_BITS[dtype])
    signs = torch.neg(ones, out=scratch("signs", mask.shape, torch.int8))
    bits = scratch("bits", mask.shape, _BITS[dtype]) if out is None else out.view(_BITS[dtype])
    return bits.copy_(signs)


def keep(x: Tensor, bits: Tensor, out: Tensor | None = None) -> Tensor:
    """``x`` where the mask is true and 0 elsewhere: a choice, as ``where`` is, and no product that NaN survives.

    On masks with holes ``where`` takes 14 ms for 1024 x 8192, a branch for each token, and this 1.
    """
    if out is None:
        return x.view(bits.dtype).bitwise_and(bits).view(x.dtype)
    torch.bitwise_and(x.view(bits.dtype), bits, out=out.view(bits.dtype))
    return out


def cut(x: Tensor, bits: Tensor, out: Tensor) -> Tensor:
    """:func:`keep` for an ``x`` of any floating dtype, in the dtype of ``out``."""
    return keep(x if x.dtype == out.dtype else out.copy_(x), bits, out)


def _all_finite(x: Tensor) -> bool:
    """Never asked on a device, which would have to wait for the answer."""
    return x.device.type == "cpu" and bool(np.isfinite(x.numpy()).all())


def _all_true(x: Tensor) -> bool:
    """Likewise."""
    return x.device.type == "cpu" and bool(x.numpy().all())


def _rows(
    x: Tensor, mask: Tensor, on: Tensor, pivot: Tensor, scratch: Scratch, bits: Tensor | None = None
) -> Rows:
    """Statistics of a block's numbers under ``mask``: what is valid, ``on``, less the responses that are excluded.

    ``bits`` are those of the mask, where somebody has them.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # mps has no fp64
    found = []
    for here in _pieces(x.shape[1]):
        part = _columns(x, here)
        if bits is None or here is not ALL:
            bits = mask_bits(_columns(mask, here), x.dtype, scratch)
        apart = torch.sub(part, pivot[:, None], out=scratch("apart", part.shape, x.dtype))
        keep(apart, bits, apart)
        squares = torch.linalg.vector_norm(apart, dim=-1).to(wide).square_()
        found.append((_number(bits), apart.sum(-1).to(wide), squares))
    number, total, squares = (
        found[0] if len(found) == 1 else (sum(parts) for parts in zip(*found, strict=True))
    )
    written = number > 0 if mask is on else on.any(-1)  # any takes three times as long as sum
    # a copy: the pivot may stand in memory that the next block is given
    return Rows(written, number, pivot.to(wide, copy=True), total, squares, None)


def _join(rows: list[Rows]) -> Rows:
    """All blocks' statistics; nobody has looked at the extent."""
    if len(rows) == 1:
        return rows[0]
    columns = (
        [getattr(some, name) for some in rows] for name in ("written", "number", "pivot", "total", "squares")
    )
    written, number, pivot, total, squares = (torch.cat(parts) for parts in columns)
    return Rows(written, number, pivot, total, squares, None)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    dtype, scratch = work_dtype(rewards, values, last), Scratch(rewards.device)
    advantages, targets = (empty(rewards.shape, dtype, rewards.device, place) for place in range(2))
    end = None if last is None else as_work(last, dtype)
    found = []
    for some in blocks(rewards.shape, block_elements(rewards)):
        after = end if end is None else end[some]
        block = (rewards[some], values[some], after, gamma, decay, advantages[some], targets[some], scratch)
        on = counted = as_bool(mask[some], scratch)
        first, bits = _gae_block(on, counted, *block)
        if not _all_finite(first):  # what is not finite has come through to the first token
            counted = on & first.isfinite()[:, None]
            first, bits = _gae_block(on, counted, *block)
        found.append(_rows(advantages[some], counted, on, first, scratch, bits))
    return Scan(advantages, targets, _join(found))


def _gae_block(
    on: Tensor,
    counted: Tensor,
    rewards: Tensor,
    values: Tensor,
    next_value: Tensor | None,
    gamma: float,
    decay: float,
    out: Tensor,
    targets: Tensor,
    scratch: Scratch,
) -> tuple[Tensor, Tensor]:
    """One block of rows; returns the advantage of each row's first token, and the bits of the leftmost piece.

    ``next_value`` and ``later`` are the value and the advantage of what follows on the right; None: nothing does.
    """
    later = None
    for here in _pieces(on.shape[1]):
        packed = _pack(_columns(counted, here), out.dtype, scratch)
        loaded = _load(_columns(values, here), packed, out.dtype, scratch, "values")
        value = _squeeze(loaded, packed, scratch, "values, squeezed")
        error = _load(_columns(rewards, here), packed, out.dtype, scratch, "errors")
        error = _squeeze(error, packed, scratch, "errors, squeezed").sub_(value)
        error[:, :-1].add_(value[:, 1:], alpha=gamma)
        if next_value is not None:
            amount = gamma * next_value if later is None else gamma * next_value + decay * later
            _add_at_end(error, packed.bits, amount)
        advantages = _columns(out, here)
        first = _scan(error, packed, decay, advantages, scratch)
        if here is not ALL:
            later = _first(packed.bits, first, later)
            next_value = _first(packed.bits, value[:, 0].clone(), next_value)
        old = loaded if loaded.shape == advantages.shape else loaded[:, : advantages.shape[1]]
        if counted is not on:  # an excluded response keeps its values as targets, where finite
            old = torch.where(_columns(on, here), _columns(values, here), 0).to(out.dtype)
            old = old.nan_to_num(0.0, 0.0, 0.0)
        torch.add(advantages, old, out=_columns(targets, here))
    return first if later is None else later, packed.bits


def returns(
    rewards: Tensor,
    mask: Tensor,
    discount: float | Tensor,
    baselines: Tensor | None = None,
) -> Scan:
    """See :func:`rl_estimators.backends.returns`."""
    dtype, device, scratch = work_dtype(rewards, baselines), rewards.device, Scratch(rewards.device)
    totals = empty(rewards.shape, dtype, device, 0)
    ahead = totals if baselines is None else empty(rewards.shape, dtype, device, 1)
    found = []
    for some in blocks(rewards.shape, block_elements(rewards)):
        on = counted = as_bool(mask[some], scratch)
        rate = discount[some].to(dtype) if isinstance(discount, Tensor) else discount
        less = None if baselines is None else as_work(baselines[some], dtype)
        first, bits = _scan_block(rewards[some], on, rate, totals[some], scratch)
        fit = first if less is None else first - less
        if not _all_finite(fit):
            counted = on & fit.isfinite()[:, None]
            first, bits = _scan_block(rewards[some], counted, rate, totals[some], scratch)
        if less is None:
            found.append(_rows(totals[some], counted, on, first, scratch, bits))
        else:
            part = ahead[some]
            bits = bits if part.shape == bits.shape else mask_bits(counted, dtype, scratch)
            torch.sub(totals[some], less[:, None], out=part)
            keep(part, bits, part)
            number, zero = _number(bits), torch.zeros_like(first)
            written = number > 0 if counted is on else on.any(-1)
            found.append(Rows(written, number, zero, zero, zero, None))
    return Scan(ahead, totals, _join(found))


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.discounted_sum`."""
    out, scratch = empty(x.shape, x.dtype, x.device), Scratch(x.device)
    for some in blocks(x.shape, block_elements(x)):
        rate = discount[some].to(x.dtype) if isinstance(discount, Tensor) else discount
        _scan_block(x[some], as_bool(mask[some], scratch), rate, out[some], scratch)
    return out


def _scan_block(
    x: Tensor, mask: Tensor, discount: float | Tensor, out: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Discounted sums of one block of rows; returns those of each row's first token, and the leftmost piece's bits."""
    later = None
    plain = not isinstance(discount, Tensor) and discount == 1  # a hole adds 0, and nothing else
    for here in _pieces(x.shape[1]):
        valid, part = _columns(mask, here), _columns(out, here)
        packed = (
            Packed(mask_bits(valid, out.dtype, scratch), None) if plain else _pack(valid, out.dtype, scratch)
        )
        piece = _load(_columns(x, here), packed, out.dtype, scratch, "piece")
        piece = _squeeze(piece, packed, scratch, "piece, squeezed")
        if later is not None and plain:
            piece[:, part.shape[1] - 1] += later
        elif later is not None:
            _add_at_end(piece, packed.bits, discount * later)
        first = _scan(piece, packed, discount, part, scratch)
        first = later = first.clone() if plain else _first(packed.bits, first, later)
        if plain:
            keep(part, packed.bits, part)
    return first, packed.bits


def moments(x: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.moments`."""
    found, scratch = [], Scratch(x.device)
    for some in blocks(x.shape, block_elements(x)):
        on, here = as_bool(mask[some], scratch), x[some]
        pivot, starts = here[:, 0], on[:, 0]
        if x.device.type != "cpu" or not starts.all():  # a row may start with a hole, or have no valid token
            first = _first_valid(on)[:, None]
            pivot = torch.where(on.gather(1, first), here.gather(1, first), 0)[:, 0]
        found.append(_rows(here, on, on, pivot, scratch))
    return _join(found)


def _first_valid(mask: Tensor) -> Tensor:
    """``(R,)`` where each row's first valid token stands; 0 where there is none."""
    if mask.device.type == "cpu":  # numpy stops at the first
        return torch.from_numpy(mask.numpy().argmax(axis=1))
    return mask.byte().argmax(-1)


def pack(mask: Tensor) -> Tensor | None:
    """An integer mask as a bool one; None if it holds anything but 0 and 1."""
    out = empty(mask.shape, torch.bool, mask.device)
    for some in blocks(mask.shape, block_elements(mask) // 4):  # of 8 bytes each, and read twice
        here = mask[some].numpy()
        if here.view(f"u{here.itemsize}").max() > 1:  # what is below 0 is large without a sign
            return None
        out[some].view(torch.int8).copy_(mask[some])  # 0 and 1, which need no comparison
    return out


def pooled(rows: Rows, by_row: bool, ddof: float, eps: float, eps_in: str) -> tuple[Number, Number, Number]:
    """See :func:`rl_estimators.backends.pooled`."""
    number, pivots, totals, squares = rows.number.to(rows.total.dtype), rows.pivot, rows.total, rows.squares
    pivot = pivots.gather(0, rows.counts.byte().argmax(0, keepdim=True))[0]  # of the first row that counts
    if by_row:
        weight = 1 / number.clamp(min=1)
        number, totals, squares = weight * number, weight * totals, weight * squares
    # Each row's sums less the batch's pivot; in fp64 the mean's square can then be subtracted without harm.
    apart = pivots - pivot
    ahead = totals + number * apart
    found: list[Any] = [pivot, number.sum(), ahead.sum(), squares.sum() + ((totals + ahead) * apart).sum()]
    at_least: Callable[..., Any] = torch.clamp
    if pivot.device.type == "cpu":  # from here on in Python, where nobody waits for a number
        found, at_least = [x.item() for x in found], max
    pivot, whole, lead, spread = found
    shift = lead / at_least(whole, 1.0)
    variance = at_least(spread - lead * shift, 0.0) / at_least(whole - ddof, 1.0)
    return pivot, shift, inverse_std(variance, eps, eps_in)


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Number, shift: Number, scale: Number, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    scratch, some_excluded = Scratch(x.device), not _all_true(rows.number)
    for some in blocks(x.shape, block_elements(x)):
        on, part = as_bool(mask[some], scratch), out[some]
        if some_excluded:
            on = on & rows.counts[some, None]
        torch.sub(x[some], pivot, out=part).sub_(shift).mul_(scale)
        keep(part, mask_bits(on, x.dtype, scratch), part)
    return out


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.scores`."""
    dtype, scratch, found = work_dtype(rewards), Scratch(rewards.device), []
    for some in blocks(rewards.shape, block_elements(rewards)):
        bits = mask_bits(as_bool(mask[some], scratch), dtype, scratch)
        number = _number(bits)
        found.append((number, _exact_sum(keep(rewards[some].to(dtype), bits, bits.view(dtype)))))
    number, total = (torch.cat(parts) for parts in zip(*found, strict=True)) if len(found) > 1 else found[0]
    written = number > 0
    if not _all_finite(total.to(dtype)):
        fit = total.to(dtype).isfinite()
        total, number = torch.where(fit, total, 0), torch.where(fit, number, 0)
    zero = torch.zeros_like(total)
    return Rows(written, number, zero, total, zero, None)


def _exact_sum(x: Tensor) -> Tensor:
    """``(R,)`` sums in fp64. torch would make a copy of the block in fp64 first, numpy makes one of 8192 numbers at a time."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.add.reduce(x.numpy(), axis=1, dtype=np.float64))
    return x.sum(-1, dtype=torch.float32 if x.device.type == "mps" else torch.float64)


def spread(x: Tensor, mask: Tensor, rows: Rows | None = None) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    out, scratch = empty(mask.shape, x.dtype, x.device), Scratch(x.device)
    numbers = x.view(_BITS[x.dtype])
    for some in blocks(mask.shape, block_elements(mask)):
        # the bits stand where the numbers will: one stream through memory in place of two
        bits = mask_bits(as_bool(mask[some], scratch), x.dtype, scratch, out[some])
        bits.bitwise_and_(numbers[some, None])
    return out


def strays(rewards: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.strays`."""
    found, scratch = [], Scratch(rewards.device)
    for some in blocks(rewards.shape, block_elements(rewards)):
        on = as_bool(mask[some], scratch)
        stray = torch.ne(rewards[some], 0, out=scratch("stray", on.shape, torch.bool)).gt_(on)
        if on.device.type == "cpu" and not stray.view(torch.uint8).amax():  # any takes eight times as long
            found.append(torch.zeros(len(on), dtype=torch.bool))
        else:
            found.append(stray.any(-1))
    return torch.cat(found)
