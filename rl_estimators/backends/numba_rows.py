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

from rl_estimators.backends import numba_scan as kernels
from rl_estimators.backends import torch_rows
from rl_estimators.backends.rows import Rows, Scan, as_work, blocks, empty, inverse_std, work_dtype

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
    threads = max(1, min(torch.get_num_threads(), rows // kernels.LANES, rows * length >> 16))
    if threads == 1 and rows * length <= _ELEMENTS:
        work(slice(None))
        return
    share = -(-rows // threads)
    share += -share % kernels.LANES  # whole groups of rows that are scanned side by side
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
    return x.detach()[some].to(dtype).contiguous().numpy()


def _mask(mask: Tensor, some: slice) -> Array:
    """Rows of a mask in any dtype as 0 and 1, one byte each; only a bool one is not copied."""
    here = mask[some]
    return (here if here.dtype == torch.bool else here != 0).contiguous().view(torch.uint8).numpy()


def _rows(stats: Array) -> Rows:
    columns = torch.from_numpy(stats.T).unbind()
    number, extent = columns[kernels.NUMBER].long(), columns[kernels.EXTENT].long()
    written, pivot = columns[kernels.WRITTEN] != 0, columns[kernels.PIVOT]
    return Rows(written, number, pivot, columns[kernels.TOTAL], columns[kernels.SQUARES], extent)


def _statistics(rows: int) -> Array:
    return np.zeros((rows, len(kernels.FIELDS)))


def _rates(discount: float | Tensor, rows: int, dtype: torch.dtype) -> Array | None:
    """A discount for each row; None where all are 1."""
    if not isinstance(discount, Tensor) and discount == 1:
        return None
    if isinstance(discount, Tensor):
        return discount.to(dtype).expand(rows).contiguous().numpy()
    return np.full(rows, _scalar(discount, dtype))


def _part(x: Array | None, some: slice) -> Array | None:
    return None if x is None else x[some]


def _scalar(x: float, dtype: torch.dtype) -> Any:
    return np.float64(x) if dtype == torch.float64 else np.float32(x)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    dtype = work_dtype(rewards, values, last)
    advantages, targets = (empty(rewards.shape, dtype, rewards.device, place) for place in range(2))
    out, sums, stats = advantages.numpy(), targets.numpy(), _statistics(len(rewards))
    end, rates = as_work(last, rewards, dtype).contiguous().numpy(), _rates(decay, len(rewards), dtype)
    discount = _scalar(gamma, dtype)

    def work(some: slice) -> None:
        kernels.scan_rows(
            _numbers(rewards, some, dtype), _numbers(values, some, dtype), _mask(mask, some), end[some],
            discount, _part(rates, some), None, out[some], sums[some], stats[some],
        )  # fmt: skip

    _over_rows(rewards.shape, work)
    return Scan(advantages, targets, _rows(stats))


def returns(rewards: Tensor, mask: Tensor, discount: float | Tensor, baselines: Tensor | None = None) -> Scan:
    """See :func:`rl_estimators.backends.returns`."""
    dtype, above = work_dtype(rewards, baselines), baselines is not None
    ahead = empty(rewards.shape, dtype, rewards.device, 0)
    totals = empty(rewards.shape, dtype, rewards.device, 1) if above else ahead
    out, sums, stats = ahead.numpy(), totals.numpy() if above else None, _statistics(len(rewards))
    less = as_work(baselines, rewards, dtype).contiguous().numpy() if above else None
    rates = _rates(discount, len(rewards), dtype)

    def work(some: slice) -> None:
        kernels.scan_rows(
            _numbers(rewards, some, dtype), None, _mask(mask, some), None, None, _part(rates, some),
            _part(less, some), out[some], _part(sums, some), stats[some],
        )  # fmt: skip

    _over_rows(rewards.shape, work)
    return Scan(ahead, totals, _rows(stats))


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.discounted_sum`."""
    return returns(x, mask, discount).returns


def moments(x: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.moments`."""
    stats = _statistics(len(x))
    _over_rows(
        x.shape, lambda some: kernels.sum_rows(_numbers(x, some, x.dtype), _mask(mask, some), stats[some])
    )
    return _rows(stats)


def pack(mask: Tensor, out: Tensor) -> bool:
    """See :func:`rl_estimators.backends.torch_rows.pack`."""
    if mask.dtype != torch.int64 or not mask.is_contiguous():  # a kernel is compiled for verl's masks
        return torch_rows.pack(mask, out)
    source, target, odd = mask.numpy(), out.view(torch.uint8).numpy(), []
    _over_rows(mask.shape, lambda some: odd.append(kernels.pack_rows(source[some], target[some])))
    return not any(odd)


def pooled(rows: Rows, by_row: bool, ddof: float, eps: float, eps_in: str) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`rl_estimators.backends.pooled`."""
    wanted = (rows.number, rows.pivot, rows.total, rows.squares)
    number, start, total, squares = (x.contiguous().numpy() for x in wanted)
    found = kernels.pool(number, start, total, squares, by_row, float(ddof))
    pivot, shift, variance = torch.tensor(found, dtype=torch.float64).unbind()
    return pivot, shift, inverse_std(variance, eps, eps_in)


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Tensor, shift: Tensor, scale: Tensor, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    number, reach = rows.number.contiguous().numpy(), _reach(rows, len(x))[1]
    less, also, times = (_scalar(float(factor), x.dtype) for factor in (pivot, shift, scale))
    # where rows do not lie side by side the kernel gets a copy of x, and cannot write in place
    in_place = out.data_ptr() == x.data_ptr() and out.is_contiguous() and x.is_contiguous()
    target = None if in_place else out.numpy()

    def work(some: slice) -> None:
        kernels.standardise_rows(
            _numbers(x, some, x.dtype), _mask(mask, some), number[some], reach[some], less, also, times,
            _part(target, some),
        )  # fmt: skip

    _over_rows(x.shape, work)
    return out


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.scores`."""
    dtype, stats = work_dtype(rewards), _statistics(len(rewards))
    _over_rows(
        rewards.shape,
        lambda some: kernels.score_rows(_numbers(rewards, some, dtype), _mask(mask, some), stats[some]),
    )
    return _rows(stats)


def spread(x: Tensor, mask: Tensor, rows: Rows | None = None) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    out = empty(mask.shape, x.dtype, x.device)
    source, target = x.contiguous().numpy(), out.numpy()
    number, extent = _reach(rows, len(x))
    _over_rows(
        mask.shape,
        lambda some: kernels.spread_rows(
            source[some], _mask(mask, some), number[some], extent[some], target[some]
        ),
    )
    return out


def strays(rewards: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.strays`."""
    found = np.zeros(len(rewards), np.bool_)
    dtype = work_dtype(rewards)
    _over_rows(
        rewards.shape,
        lambda some: kernels.find_strays(_numbers(rewards, some, dtype), _mask(mask, some), found[some]),
    )
    return torch.from_numpy(found)


def _reach(rows: Rows | None, size: int) -> tuple[Array, Array]:
    """How many tokens of a row count and where they end; not the same, where that is not known: read the mask."""
    if rows is None or rows.extent is None:
        return np.zeros(size, np.int64), np.full(size, -1)
    return rows.number.numpy(), rows.extent.numpy()


def probe() -> None:
    """Compile the kernels for what verl passes; raises what numba raises."""
    x, mask = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long)
    gae(x, x, mask, None, 1.0, 1.0)
