# mypy: disable-error-code="no-untyped-call"
"""The compiled kernels as functions of tensors, on as many threads as torch may use.

Kernels run without the GIL, each thread on its own rows, so nothing but Python's threads is needed: no second pool of
OpenMP threads that would spin beside torch's. One thread means none: the work is done where it was asked for.

Before anything else a kernel must be compiled, once per dtype of numbers and mask: some seconds the first time, which
numba then keeps on disk beside the package or, where that cannot be written, in the user's cache.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators.backends import numba_scan as kernels
from rl_estimators.backends.rows import Rows, Scan, as_work, blocks, empty, work_dtype

__all__ = ["discounted_sum", "gae", "moments", "probe", "returns", "scores", "spread", "standardise"]

Array = np.ndarray[Any, Any]
_ELEMENTS = 1 << 20  # numbers that a thread has copied at a time, if they must be
_MASKS = (torch.bool, torch.int64)  # others are copied: a kernel is compiled for each


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rl_estimators")


def _over_rows(shape: tuple[int, ...], work: Callable[[slice], None]) -> None:
    """Run ``work`` on slices that cover all rows, side by side on torch's number of threads."""
    rows, length = shape
    threads = max(1, min(torch.get_num_threads(), rows // kernels.LANES, rows * length >> 16))
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
    return x[some].detach().to(dtype).contiguous().numpy()


def _mask(mask: Tensor, some: slice) -> Array:
    here = mask[some]
    return (here if here.dtype in _MASKS else here != 0).contiguous().numpy()


def _rows(stats: Array) -> Rows:
    numbers = torch.from_numpy(stats)
    whole = numbers[:, kernels.EXTENT : kernels.NUMBER + 1].long()
    return Rows(
        numbers[:, kernels.WRITTEN] != 0,
        whole[:, 1].contiguous(),
        numbers[:, kernels.PIVOT],
        numbers[:, kernels.TOTAL],
        numbers[:, kernels.SQUARES],
        whole[:, 0].contiguous(),
    )


def _statistics(rows: int) -> Array:
    return np.zeros((rows, len(kernels.FIELDS)))


def _scalar(x: float, dtype: torch.dtype) -> Any:
    return np.float64(x) if dtype == torch.float64 else np.float32(x)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    dtype = work_dtype(rewards, values, last)
    advantages, targets = (empty(rewards.shape, dtype, rewards.device, place) for place in range(2))
    out, sums, stats = advantages.numpy(), targets.numpy(), _statistics(len(rewards))
    end = as_work(last, rewards, dtype).numpy()
    discount, decay = _scalar(gamma, dtype), _scalar(decay, dtype)

    def work(some: slice) -> None:
        kernels.gae_rows(
            _numbers(rewards, some, dtype), _numbers(values, some, dtype), _mask(mask, some), end[some],
            discount, decay, out[some], sums[some], stats[some],
        )  # fmt: skip

    _over_rows(rewards.shape, work)
    return Scan(advantages, targets, _rows(stats))


def returns(rewards: Tensor, mask: Tensor, discount: float | Tensor, baselines: Tensor | None = None) -> Scan:
    """See :func:`rl_estimators.backends.returns`."""
    dtype = work_dtype(rewards, baselines)
    totals = empty(rewards.shape, dtype, rewards.device, 0)
    ahead = totals if baselines is None else empty(rewards.shape, dtype, rewards.device, 1)
    out, sums, stats = ahead.numpy(), totals.numpy(), _statistics(len(rewards))
    less = as_work(baselines, rewards, dtype).contiguous().numpy()
    rates = torch.as_tensor(discount, dtype=dtype).expand(len(rewards)).contiguous().numpy()

    def work(some: slice) -> None:
        kernels.return_rows(
            _numbers(rewards, some, dtype), _mask(mask, some), rates[some], less[some], baselines is not None,
            out[some], sums[some], stats[some],
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


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Tensor, shift: Tensor, scale: Tensor, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    extent = torch.full_like(rows.number, -1) if rows.extent is None else rows.extent  # -1: read the mask
    number, reach = rows.number.numpy(), extent.numpy()
    less, also, times = (_scalar(float(factor), x.dtype) for factor in (pivot, shift, scale))
    target = out.numpy()

    def work(some: slice) -> None:
        kernels.standardise_rows(
            _numbers(x, some, x.dtype),
            _mask(mask, some),
            number[some],
            reach[some],
            less,
            also,
            times,
            target[some],
        )

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


def spread(x: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    out = empty(mask.shape, x.dtype, x.device)
    source, target = x.contiguous().numpy(), out.numpy()
    _over_rows(mask.shape, lambda some: kernels.spread_rows(source[some], _mask(mask, some), target[some]))
    return out


def probe() -> None:
    """Compile the kernels for what verl passes; raises what numba raises."""
    x, mask = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long)
    gae(x, x, mask, None, 1.0, 1.0)
