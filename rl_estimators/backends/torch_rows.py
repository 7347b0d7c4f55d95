"""The kernels in plain torch, for every device and dtype.

Each works through the batch in blocks of rows, small enough to stay in the processor's cache from the first operation to
the last, and so needs a few MiB beyond its outputs, whatever the batch's size. What a block needs in between stands in
the same memory for all of them (``torch_blocks``). Rows that are longer than a block are read in pieces, from right to
left. Masks with holes have a module of their own (``torch_holes``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators.backends.memory import empty
from rl_estimators.backends.rows import (
    ALL,
    Number,
    Rows,
    Scan,
    as_work,
    double_sum,
    in_blocks,
    inverse_std,
    widest,
    work_dtype,
)
from rl_estimators.backends.torch_blocks import (
    BITS,
    Scratch,
    as_bool,
    block_elements,
    compare,
    keep,
    mask_bits,
    valid_number,
)
from rl_estimators.backends.torch_holes import (
    Packed,
    add_at_end,
    first_of,
    load,
    place_tokens,
    scan_piece,
    squeeze,
)

__all__ = [
    "discounted_sum",
    "gae",
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


def _pieces(length: int) -> list[slice]:
    """Columns from right to left."""
    if length <= _PIECE:
        return [ALL]
    return [slice(max(end - _PIECE, 0), end) for end in range(length, 0, -_PIECE)]


def _columns(x: Tensor, here: slice) -> Tensor:
    return x if here is ALL else x[:, here]


def _all_finite(x: Tensor) -> bool:
    """Never asked on a device, which would have to wait for the answer."""
    return x.is_cpu and bool(np.isfinite(x.numpy()).all())


def _all_true(x: Tensor) -> bool:
    """Likewise."""
    return x.is_cpu and bool(x.numpy().all())


def _rows(
    x: Tensor, mask: Tensor, on: Tensor, pivot: Tensor, scratch: Scratch, bits: Tensor | None = None
) -> Rows:
    """Statistics of a block's numbers under ``mask``: what is valid, ``on``, less the responses that are excluded.

    ``bits`` are those of the mask, where somebody has them.
    """
    wide = widest(x.device)
    found = []
    for here in _pieces(x.shape[1]):
        part = _columns(x, here)
        if bits is None or here is not ALL:
            bits = mask_bits(_columns(mask, here), x.dtype, scratch)
        apart = torch.sub(part, pivot[:, None], out=scratch("apart", part.shape, x.dtype))
        keep(apart, bits, apart)
        squares = torch.linalg.vector_norm(apart, dim=-1).to(wide).square_()
        found.append((valid_number(bits), apart.sum(-1).to(wide), squares))
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
    whole = advantages, targets, rewards, values, end, gamma, decay, scratch
    for here, ahead, *block in in_blocks(block_elements(rewards), mask, *whole):
        on = counted = as_bool(here, scratch)
        first, bits = _gae_block(on, counted, ahead, *block)
        if not _all_finite(first):  # what is not finite has come through to the first token
            counted = on & first.isfinite()[:, None]
            first, bits = _gae_block(on, counted, ahead, *block)
        found.append(_rows(ahead, counted, on, first, scratch, bits))
    return Scan(advantages, targets, _join(found))


def _gae_block(
    on: Tensor,
    counted: Tensor,
    out: Tensor,
    targets: Tensor,
    rewards: Tensor,
    values: Tensor,
    next_value: Tensor | None,
    gamma: float,
    decay: float,
    scratch: Scratch,
) -> tuple[Tensor, Tensor]:
    """One block of rows; returns the advantage of each row's first token, and the bits of the leftmost piece.

    ``next_value`` and ``later`` are the value and the advantage of what follows on the right; None: nothing does.
    """
    later = None
    for here in _pieces(on.shape[1]):
        packed = place_tokens(_columns(counted, here), out.dtype, scratch)
        loaded = load(_columns(values, here), packed, out.dtype, scratch, "values")
        value = squeeze(loaded, packed, scratch, "values, squeezed")
        error = load(_columns(rewards, here), packed, out.dtype, scratch, "errors")
        error = squeeze(error, packed, scratch, "errors, squeezed").sub_(value)
        error[:, :-1].add_(value[:, 1:], alpha=gamma)
        if next_value is not None:
            amount = gamma * next_value if later is None else gamma * next_value + decay * later
            add_at_end(error, packed.bits, amount)
        advantages = _columns(out, here)
        first = scan_piece(error, packed, decay, advantages, scratch)
        if here is not ALL:
            later = first_of(packed.bits, first, later)
            next_value = first_of(packed.bits, value[:, 0].clone(), next_value)
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
    ahead = None if baselines is None else empty(rewards.shape, dtype, device, 1)
    less = None if baselines is None else as_work(baselines, dtype)
    rates = discount.to(dtype) if isinstance(discount, Tensor) else discount
    found, last = [], []
    for x, here, rate, total, above, minus in in_blocks(
        block_elements(rewards), rewards, mask, rates, totals, ahead, less
    ):
        on = counted = as_bool(here, scratch)
        first, bits = _scan_block(x, on, rate, total, scratch)
        top = first if minus is None else first - minus
        if not _all_finite(top):  # what is not finite has come through to the first token
            counted = on & top.isfinite()[:, None]
            first, bits = _scan_block(x, counted, rate, total, scratch)
        if minus is None:
            found.append(_rows(total, counted, on, first, scratch, bits))
        else:
            last.append(top)
            torch.sub(total, minus[:, None], out=above)
            keep(above, bits if above.shape == bits.shape else mask_bits(counted, dtype, scratch), above)
    if ahead is None:
        return Scan(totals, totals, _join(found))
    return Scan(ahead, totals, _Glanced(mask, last[0] if len(last) == 1 else torch.cat(last)))


class _Glanced(Rows):
    """Which rows count and how many of their tokens; computed when somebody asks, as few do.

    A row counts where ``top``, the number that all others of the row have come through to, is finite.
    """

    def __init__(self, mask: Tensor, top: Tensor) -> None:
        self._mask, self._top = mask, top

    def __getattr__(self, name: str) -> Tensor:
        if name == "written":
            return self._mask.bool().any(-1)
        if name == "number":
            return self._mask.bool().sum(-1) * self._top.isfinite()
        raise AttributeError(name)

    @property
    def excluded(self) -> Tensor:
        """See :class:`~rl_estimators.backends.rows.Rows`; the mask is read only where it matters."""
        return torch.zeros_like(self._top, dtype=torch.bool) if _all_finite(self._top) else super().excluded


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.discounted_sum`."""
    out, scratch = empty(x.shape, x.dtype, x.device), Scratch(x.device)
    rates = discount.to(x.dtype) if isinstance(discount, Tensor) else discount
    for part, here, rate, total in in_blocks(block_elements(x), x, mask, rates, out):
        _scan_block(part, as_bool(here, scratch), rate, total, scratch)
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
            Packed(mask_bits(valid, out.dtype, scratch), None)
            if plain
            else place_tokens(valid, out.dtype, scratch)
        )
        piece = load(_columns(x, here), packed, out.dtype, scratch, "piece")
        piece = squeeze(piece, packed, scratch, "piece, squeezed")
        if later is not None and plain:
            piece[:, part.shape[1] - 1] += later
        elif later is not None:
            add_at_end(piece, packed.bits, discount * later)
        first = scan_piece(piece, packed, discount, part, scratch)
        first = later = first.clone() if plain else first_of(packed.bits, first, later)
        if plain:
            keep(part, packed.bits, part)
    return first, packed.bits


def moments(x: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.moments`."""
    found, scratch = [], Scratch(x.device)
    for part, here in in_blocks(block_elements(x), x, mask):
        on = as_bool(here, scratch)
        pivot, starts = part[:, 0], on[:, 0]
        if not x.is_cpu or not starts.all():  # a row may start with a hole, or have no valid token
            first = _first_valid(on)[:, None]
            pivot = torch.where(on.gather(1, first), part.gather(1, first), 0)[:, 0]
        found.append(_rows(part, on, on, pivot, scratch))
    return _join(found)


def _first_valid(mask: Tensor) -> Tensor:
    """``(R,)`` where each row's first valid token stands; 0 where there is none."""
    if mask.is_cpu:  # numpy stops at the first
        return torch.from_numpy(mask.numpy().argmax(axis=1))
    return mask.byte().argmax(-1)


def pack(mask: Tensor) -> Tensor | None:
    """An integer mask as a bool one; None if it holds anything but 0 and 1."""
    elements = block_elements(mask) // 2  # of up to 8 bytes each, and read twice
    if mask.numel() <= elements:
        return mask.bool() if _is_binary(mask) else None
    out = empty(mask.shape, torch.bool, mask.device)
    for here, ones in in_blocks(elements, mask, out.view(torch.int8)):
        if not _is_binary(here):
            return None
        ones.copy_(here)  # 0 and 1, which need no comparison
    return out


def _is_binary(mask: Tensor) -> bool:
    """Whether integers are all 0 or 1: without their sign, those below 0 are large."""
    return bool(np.maximum.reduce(mask.numpy().view(f"u{mask.itemsize}"), axis=None) <= 1)


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
    if pivot.is_cpu:  # from here on in Python, where nobody waits for a number
        found, at_least = [x.item() for x in found], max
    pivot, whole, lead, spread = found
    shift = lead / at_least(whole, 1.0)
    variance = at_least(spread - lead * shift, 0.0) / at_least(whole - ddof, 1.0)
    return pivot, shift, inverse_std(variance, eps, eps_in)


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Number, shift: Number, scale: Number, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    scratch, counts = Scratch(x.device), None if _all_true(rows.number) else rows.counts[:, None]
    for part, here, counted, to in in_blocks(block_elements(x), x, mask, counts, out):
        on = as_bool(here, scratch)
        torch.sub(part, pivot, out=to).sub_(shift).mul_(scale)
        keep(to, mask_bits(on if counted is None else on & counted, x.dtype, scratch), to)
    return out


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.scores`."""
    dtype, scratch, found = work_dtype(rewards), Scratch(rewards.device), []
    for part, here in in_blocks(block_elements(rewards), rewards, mask):
        bits = mask_bits(as_bool(here, scratch), dtype, scratch)
        number = valid_number(bits)
        found.append((number, _exact_sum(keep(part.to(dtype), bits, bits.view(dtype)), scratch)))
    number, total = (torch.cat(parts) for parts in zip(*found, strict=True)) if len(found) > 1 else found[0]
    written = number > 0
    if not _all_finite(total.to(dtype)):
        fit = total.to(dtype).isfinite()
        total, number = torch.where(fit, total, 0), torch.where(fit, number, 0)
    zero = torch.zeros_like(total)
    return Rows(written, number, zero, total, zero, None)


def _exact_sum(x: Tensor, scratch: Scratch) -> Tensor:
    """``(R,)`` sums in fp64, see :func:`rl_estimators.masked.exact_sum`."""
    if x.dtype == torch.float64:
        return double_sum(x)
    if not x.is_cpu:
        return x.sum(-1, dtype=widest(x.device))
    # on the CPU sum(dtype=) makes a copy in memory of its own
    parts = (_columns(x, here) for here in _pieces(x.shape[1]))
    sums = [scratch("wide", part.shape, torch.float64).copy_(part).sum(-1) for part in parts]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def spread(x: Tensor, mask: Tensor, rows: Rows | None = None) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    out, scratch = empty(mask.shape, x.dtype, x.device), Scratch(x.device)
    numbers = x.view(BITS[x.dtype])[:, None]
    for here, number, to in in_blocks(block_elements(mask), mask, numbers, out):
        # the bits stand where the numbers will: one stream through memory in place of two
        mask_bits(as_bool(here, scratch), x.dtype, scratch, to).bitwise_and_(number)
    return out


def strays(rewards: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.strays`."""
    found, scratch = [], Scratch(rewards.device)
    for part, here in in_blocks(block_elements(rewards), rewards, mask):
        on = as_bool(here, scratch)
        stray = compare("not_equal", part, 0).gt_(on)
        if on.is_cpu:  # torch's any takes eight times as long
            found.append(torch.from_numpy(stray.numpy().any(axis=1)))
        else:
            found.append(stray.any(-1))
    return torch.cat(found)
