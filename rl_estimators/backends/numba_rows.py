# mypy: disable-error-code="no-untyped-call"
"""The compiled kernels as functions of tensors, on as many threads as torch may use.

Kernels run without the GIL, each thread on its own rows, so nothing but Python's threads is needed: no second pool of
OpenMP threads that would spin beside torch's. One thread means none: the work is done where it was asked for.

Before anything else a kernel must be compiled, once per dtype of numbers and mask: some seconds the first time, which
numba then keeps on disk beside the package or, where that cannot be written, in the user's cache.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators.backends import numba_scan, numba_spread, numba_sums, torch_rows
from rl_estimators.backends.memory import empty, large
from rl_estimators.backends.rows import (
    ALL,
    Number,
    Rows,
    Scan,
    as_work,
    blocks,
    inverse_std,
    take,
    work_dtype,
)

__all__ = [
    "discounted_sum",
    "gae",
    "moments",
    "pack",
    "pooled",
    "probe",
    "returns",
    "scores",
    "spread",
    "standardise",
    "strays",
]

Array = np.ndarray[Any, Any]
_ELEMENTS = 1 << 20  # numbers that a thread has copied at a time, if they must be


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rl_estimators")


# A child has none of its parent's threads, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _over_rows(shape: tuple[int, ...], work: Callable[[slice], None]) -> None:
    """Run ``work`` on slices that cover all rows, side by side on torch's number of threads."""
    rows, length = shape
    most = min(rows // numba_scan.LANES, rows * length >> 16)
    threads = min(torch.get_num_threads(), most) if most > 1 else 1
    if threads == 1 and rows * length <= _ELEMENTS:
        work(ALL)
        return
    share = -(-rows // threads)
    share += -share % numba_scan.LANES  # whole groups of rows that are scanned side by side
    shares = [slice(start, min(start + share, rows)) for start in range(0, rows, share)]

    def run(some: slice) -> None:
        for part in blocks((some.stop - some.start, length), _ELEMENTS):
            work(slice(some.start + part.start, some.start + part.stop))

    if len(shares) == 1:
        run(shares[0])
    else:
        list(_pool(len(shares)).map(run, shares))


def _numbers(x: Tensor, some: slice, dtype: torch.dtype) -> Array:
    """Rows as an array in the working dtype, copied only if they are in another one or not contiguous."""
    here = take(x, some)
    here = here if here.dtype == dtype else here.to(dtype)
    return here.contiguous().numpy()


def _mask(mask: Tensor, some: slice) -> Array:
    """Rows of a mask in any dtype as 0 and 1, one byte each; only a bool one is not copied."""
    here = take(mask, some)
    return (here if here.dtype == torch.bool else here != 0).contiguous().view(torch.uint8).numpy()


def _part(x: Array | None, some: slice) -> Array | None:
    """Rows of what there is for each row; what there is one of serves them all."""
    return x if x is None or some is ALL or len(x) == 1 else x[some]


def _flat(x: Array | None, some: slice) -> Array | None:
    """Rows one after the other."""
    return x if x is None else x[some].reshape(-1)


class _Table(Rows):
    """Statistics as a kernel leaves them, ``(B, 6)``; a column becomes a tensor when somebody asks for it, as few do."""

    def __init__(self, rows: int) -> None:
        self.table = np.zeros((rows, len(numba_sums.FIELDS)))

    def __getattr__(self, name: str) -> Tensor:
        if name not in _COLUMNS:
            raise AttributeError(name)
        place, dtype = _COLUMNS[name]
        return torch.from_numpy(self.table[:, place]).to(dtype)


_COLUMNS = {
    "written": (numba_sums.WRITTEN, torch.bool),
    "number": (numba_sums.NUMBER, torch.long),
    "pivot": (numba_sums.PIVOT, torch.float64),
    "total": (numba_sums.TOTAL, torch.float64),
    "squares": (numba_sums.SQUARES, torch.float64),
    "extent": (numba_sums.EXTENT, torch.long),
}


def _table(rows: Rows | None, size: int) -> Array:
    """What our kernels found; of rows that others have read only which count: the number and the extent then differ."""
    if isinstance(rows, _Table):
        return rows.table
    table = np.zeros((size, len(numba_sums.FIELDS)))
    counts = slice(None) if rows is None else rows.counts.numpy()
    table[counts, numba_sums.NUMBER], table[counts, numba_sums.EXTENT] = 1, -1
    return table


def _rates(discount: float | Tensor, dtype: torch.dtype) -> Array | None:
    """A discount for each row, or one for all; None where it is 1."""
    if isinstance(discount, Tensor):
        return discount.to(dtype).contiguous().numpy()
    return None if discount == 1 else np.array([_scalar(discount, dtype)])


def _scalar(x: float, dtype: torch.dtype) -> Any:
    return np.float64(x) if dtype == torch.float64 else np.float32(x)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    dtype = work_dtype(rewards, values, last)
    advantages, targets = (empty(rewards.shape, dtype, rewards.device, place) for place in range(2))
    out, sums, stats = advantages.numpy(), targets.numpy(), _Table(len(rewards))
    end, rates = _one_each(last, len(rewards), dtype), _rates(decay, dtype)
    discount, past = _scalar(gamma, dtype), large(out)

    def work(some: slice) -> None:
        numba_scan.scan_rows(
            _numbers(rewards, some, dtype), _numbers(values, some, dtype), _mask(mask, some), end[some],
            discount, _part(rates, some), None, _flat(out, some), _flat(sums, some), stats.table[some], past,
        )  # fmt: skip

    _over_rows(rewards.shape, work)
    return Scan(advantages, targets, stats)


def returns(rewards: Tensor, mask: Tensor, discount: float | Tensor, baselines: Tensor | None = None) -> Scan:
    """See :func:`rl_estimators.backends.returns`."""
    dtype, above = work_dtype(rewards, baselines), baselines is not None
    ahead = empty(rewards.shape, dtype, rewards.device, 0)
    totals = empty(rewards.shape, dtype, rewards.device, 1) if above else ahead
    out, sums, stats = ahead.numpy(), totals.numpy() if above else None, _Table(len(rewards))
    less = _one_each(baselines, len(rewards), dtype) if above else None
    rates, past = _rates(discount, dtype), large(out)

    def work(some: slice) -> None:
        numba_scan.scan_rows(
            _numbers(rewards, some, dtype), None, _mask(mask, some), None, None, _part(rates, some),
            _part(less, some), _flat(out, some), _flat(sums, some), stats.table[some], past,
        )  # fmt: skip

    _over_rows(rewards.shape, work)
    return Scan(ahead, totals, stats)


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.discounted_sum`."""
    return returns(x, mask, discount).returns


def moments(x: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.moments`."""
    stats = _Table(len(x))
    _over_rows(
        x.shape,
        lambda some: numba_sums.sum_rows(_numbers(x, some, x.dtype), _mask(mask, some), stats.table[some]),
    )
    return stats


def pack(mask: Tensor) -> Tensor | None:
    """See :func:`rl_estimators.backends.torch_rows.pack`."""
    if mask.dtype != torch.int64 or not mask.is_contiguous():  # a kernel is compiled for verl's masks
        return torch_rows.pack(mask)
    out = empty(mask.shape, torch.bool, mask.device)
    source, target, odd = mask.numpy(), out.view(torch.uint8).numpy(), []
    _over_rows(mask.shape, lambda some: odd.append(numba_sums.pack_rows(source[some], target[some])))
    return None if any(odd) else out


def pooled(rows: Rows, by_row: bool, ddof: float, eps: float, eps_in: str) -> tuple[Number, Number, Number]:
    """See :func:`rl_estimators.backends.pooled`."""
    if not isinstance(rows, _Table):
        return torch_rows.pooled(rows, by_row, ddof, eps, eps_in)
    pivot, shift, variance = numba_sums.pool(rows.table, by_row, float(ddof))
    return pivot, shift, inverse_std(variance, eps, eps_in)


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Number, shift: Number, scale: Number, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    stats = _table(rows, len(x))
    less, also, times = (_scalar(float(factor), x.dtype) for factor in (pivot, shift, scale))
    # a kernel writes rows that lie side by side
    target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
    into, in_place = target.numpy(), target.data_ptr() == x.data_ptr()
    past = large(out) and not in_place

    def work(some: slice) -> None:
        numba_spread.standardise_rows(
            _numbers(x, some, x.dtype), _mask(mask, some), stats[some], less, also, times, into[some],
            past, in_place,
        )  # fmt: skip

    _over_rows(x.shape, work)
    return out if target is out else out.copy_(target)


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.scores`."""
    dtype = work_dtype(rewards)
    if dtype == torch.float64:  # whose sums take two halves of each number, and hardly anybody trains in it
        return torch_rows.scores(rewards, mask)
    stats = _Table(len(rewards))
    _over_rows(
        rewards.shape,
        lambda some: numba_sums.score_rows(
            _numbers(rewards, some, dtype), _mask(mask, some), stats.table[some]
        ),
    )
    return stats


def spread(x: Tensor, mask: Tensor, rows: Rows | None = None) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    out = empty(mask.shape, x.dtype, x.device)
    source, target, stats = x.contiguous().numpy(), out.numpy(), _table(rows, len(x))
    past = large(out)
    _over_rows(
        mask.shape,
        lambda some: numba_spread.spread_rows(
            source[some], _mask(mask, some), stats[some], target[some], past
        ),
    )
    return out


def strays(rewards: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.strays`."""
    found = np.zeros(len(rewards), np.bool_)
    dtype = work_dtype(rewards)
    _over_rows(
        rewards.shape,
        lambda some: numba_sums.find_strays(_numbers(rewards, some, dtype), _mask(mask, some), found[some]),
    )
    return torch.from_numpy(found)


def _one_each(x: Tensor | None, rows: int, dtype: torch.dtype) -> Array:
    """A number for each row; 0 in place of None."""
    if x is None:
        return np.zeros(rows, np.float64 if dtype == torch.float64 else np.float32)
    return as_work(x, dtype).contiguous().numpy()


def probe() -> None:
    """Compile the kernels for what verl passes; raises what numba raises."""
    x, mask = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long)
    gae(x, x, mask, None, 1.0, 1.0)
