"""The triton kernels as functions of tensors: one launch each, and nothing that the host would wait for.

Numbers are fp32 (what comes in as bf16 or fp16 is read as it is): a batch in fp64 goes to torch's kernels.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from rl_estimators.backends import torch_rows, triton_scan, triton_spread, triton_sums
from rl_estimators.backends.rows import Rows, Scan, as_work, work_dtype

__all__ = [
    "discounted_sum",
    "gae",
    "moments",
    "pooled",
    "probe",
    "returns",
    "scores",
    "spread",
    "standardise",
    "strays",
]

_BLOCK = 1024  # tokens at a time
_LEAST = 128  # a program has as many threads: fewer tokens would only be copies of each other


def _block(length: int) -> int:
    return min(_BLOCK, max(_LEAST, 1 << (length - 1).bit_length()))


def _numbers(x: Tensor) -> Tensor:
    """As a kernel reads it: rows at any distance, their numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _mask(mask: Tensor) -> Tensor:
    """Likewise; a bool one as bytes."""
    mask = _numbers(mask)
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def _launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *given: Any, **constants: Any) -> None:
    """Launch on the device of ``like``: triton itself launches on the current one."""
    with torch.cuda.device_of(like):
        kernel[grid](like, *given, **constants)


class _Statistics:
    """Where a kernel writes what it finds of each row, see ``triton_sums.store_row``."""

    def __init__(self, x: Tensor) -> None:
        size, device = len(x), x.device
        self.written = torch.empty(size, dtype=torch.uint8, device=device)
        self.counts = torch.empty(2, size, dtype=torch.int64, device=device)
        self.sums = torch.empty(3, size, dtype=torch.float64, device=device)

    def rows(self) -> Rows:
        (number, extent), (pivot, total, squares) = self.counts.unbind(), self.sums.unbind()
        return Rows(self.written.view(torch.bool), number, pivot, total, squares, extent)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, last: Tensor | None, gamma: float, decay: float
) -> Scan:
    """See :func:`rl_estimators.backends.gae`."""
    if work_dtype(rewards, values, last) != torch.float32:
        return torch_rows.gae(rewards, values, mask, last, gamma, decay)
    rewards, values, mask, found = _numbers(rewards), _numbers(values), _mask(mask), _Statistics(rewards)
    rows, length = rewards.shape
    advantages, targets = (
        torch.empty(rows, length, dtype=torch.float32, device=rewards.device) for _ in range(2)
    )
    end = None if last is None else as_work(last, torch.float32).contiguous()
    _launch(
        triton_scan.gae_kernel, (rows,),
        rewards, values, mask, end, advantages, targets, found.written, found.counts, found.sums,
        length, rewards.stride(0), values.stride(0), mask.stride(0), float(gamma), float(decay),
        BLOCK=_block(length),
    )  # fmt: skip
    return Scan(advantages, targets, found.rows())


def returns(rewards: Tensor, mask: Tensor, discount: float | Tensor, baselines: Tensor | None = None) -> Scan:
    """See :func:`rl_estimators.backends.returns`."""
    if work_dtype(rewards, baselines) != torch.float32:
        return torch_rows.returns(rewards, mask, discount, baselines)
    rewards, mask, found = _numbers(rewards), _mask(mask), _Statistics(rewards)
    rows, length = rewards.shape
    ahead = torch.empty(rows, length, dtype=torch.float32, device=rewards.device)
    totals = ahead if baselines is None else torch.empty_like(ahead)
    less = None if baselines is None else as_work(baselines, torch.float32).contiguous()
    rates = discount.to(torch.float32).expand(rows).contiguous() if isinstance(discount, Tensor) else None
    _launch(
        triton_scan.returns_kernel, (rows,),
        rewards, mask, rates, less, ahead, totals, found.written, found.counts, found.sums,
        length, rewards.stride(0), mask.stride(0), 0.0 if isinstance(discount, Tensor) else float(discount),
        BLOCK=_block(length),
    )  # fmt: skip
    return Scan(ahead, totals, found.rows())


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.discounted_sum`."""
    return returns(x, mask, discount).returns


def _sum_rows(kernel: Any, x: Tensor, mask: Tensor, *found: Tensor) -> None:
    x, mask, length = _numbers(x), _mask(mask), x.shape[1]
    _launch(kernel, (len(x),), x, mask, *found, length, x.stride(0), mask.stride(0), BLOCK=_block(length))


def moments(x: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.moments`."""
    if x.dtype != torch.float32:
        return torch_rows.moments(x, mask)
    found = _Statistics(x)
    _sum_rows(triton_sums.moments_kernel, x, mask, found.written, found.counts, found.sums)
    return found.rows()


def scores(rewards: Tensor, mask: Tensor) -> Rows:
    """See :func:`rl_estimators.backends.scores`."""
    if rewards.dtype == torch.float64:
        return torch_rows.scores(rewards, mask)
    found = _Statistics(rewards)
    _sum_rows(triton_sums.scores_kernel, rewards, mask, found.written, found.counts, found.sums)
    return found.rows()


def strays(rewards: Tensor, mask: Tensor) -> Tensor:
    """See :func:`rl_estimators.backends.strays`."""
    found = torch.empty(len(rewards), dtype=torch.uint8, device=rewards.device)
    _sum_rows(triton_sums.strays_kernel, rewards, mask, found)
    return found.view(torch.bool)


def pooled(rows: Rows, by_row: bool, ddof: float, eps: float, eps_in: str) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`rl_estimators.backends.pooled`."""
    number, *sums = (x.contiguous() for x in (rows.number, rows.pivot, rows.total, rows.squares))
    found = torch.empty(3, dtype=torch.float64, device=number.device)
    _launch(
        triton_sums.pool_kernel, (1,),
        number, *sums, found, len(number),
        BY_ROW=by_row, DDOF=float(ddof), EPS=float(eps), EPS_IN_STD=eps_in == "std", BLOCK=_BLOCK,
    )  # fmt: skip
    pivot, shift, scale = found.unbind()
    return pivot, shift, scale


def standardise(
    x: Tensor, mask: Tensor, rows: Rows, pivot: Tensor, shift: Tensor, scale: Tensor, out: Tensor
) -> Tensor:
    """See :func:`rl_estimators.backends.standardise`."""
    if x.dtype != torch.float32:
        return torch_rows.standardise(x, mask, rows, pivot, shift, scale, out)
    if out.stride(-1) != 1:
        return out.copy_(
            standardise(x, mask, rows, pivot, shift, scale, torch.empty(x.shape, device=x.device))
        )
    x, mask, (size, length) = _numbers(x), _mask(mask), x.shape
    _launch(
        triton_spread.standardise_kernel, (size, triton.cdiv(length, _block(length))),
        x, mask, rows.number.contiguous(), _extent(rows), pivot, shift, scale, out,
        length, x.stride(0), mask.stride(0), out.stride(0), BLOCK=_block(length),
    )  # fmt: skip
    return out


def spread(x: Tensor, mask: Tensor, rows: Rows | None = None) -> Tensor:
    """See :func:`rl_estimators.backends.spread`."""
    mask, (size, length) = _mask(mask), mask.shape
    out = torch.empty(size, length, dtype=x.dtype, device=x.device)
    number, extent = (None, None) if rows is None else (rows.number.contiguous(), _extent(rows))
    _launch(
        triton_spread.spread_kernel, (size, triton.cdiv(length, _block(length))),
        x.contiguous(), mask, number, extent, out, length, mask.stride(0), BLOCK=_block(length),
    )  # fmt: skip
    return out


def _extent(rows: Rows) -> Tensor:
    """Where each row's valid tokens end; where nobody has looked, what says: read the mask."""
    return torch.full_like(rows.number, -1) if rows.extent is None else rows.extent.contiguous()


def probe() -> None:
    """Compile the kernels of GAE with whitening; raises what triton raises."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, mask = torch.zeros(1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    found = gae(x, x, mask, None, 1.0, 1.0)
    standardise(x, mask, found.rows, *pooled(found.rows, False, 1.0, 1e-8, "variance"), x)
