"""What the kernels share: the numbers they keep of each response and blocks of rows."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ALL",
    "Number",
    "Rows",
    "Scan",
    "as_work",
    "blocks",
    "double_sum",
    "in_blocks",
    "inverse_std",
    "take",
    "widest",
    "work_dtype",
]

ALL = slice(None)  # rows or columns; known by identity, for then nothing need be cut
# One for the whole batch: 0-dim on a device, where nobody waits for it, and a float on the CPU.
Number = Tensor | float


@dataclass
class Rows:
    """What is known of each response once its row has been read; all ``(B,)``, on the tensors' device.

    Attributes:
        written: Bool, the mask has valid tokens.
        number: How many tokens count: the valid ones, or 0 in a response that is excluded.
        pivot: One of the row's numbers, in fp64 as what follows.
        total: Sum of the row's numbers less the pivot.
        squares: Sum of the squares of the row's numbers less the pivot.
        extent: One beyond the last valid token, or 0 in a response that is excluded; None where nobody has looked.
    """

    written: Tensor
    number: Tensor
    pivot: Tensor
    total: Tensor
    squares: Tensor
    extent: Tensor | None

    @property
    def counts(self) -> Tensor:
        """``(B,)`` bool, true on responses that count."""
        return self.number > 0

    @property
    def excluded(self) -> Tensor:
        """``(B,)`` bool, true on responses that have valid tokens and do not count."""
        return self.written & ~self.counts


class Scan(NamedTuple):
    """Advantages and returns, both ``(B, T)`` and 0 where nothing counts, with the advantages' statistics."""

    advantages: Tensor
    returns: Tensor
    rows: Rows


def work_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp64 if any tensor is, else fp32."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def widest(device: torch.device) -> torch.dtype:
    """fp64, or fp32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_work(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B,)`` numbers in the working dtype, without a gradient."""
    return x.detach().to(dtype)


def double_sum(x: Tensor) -> Tensor:
    """``(R,)`` sums of fp64 numbers, the same in whatever order those of similar size stand.

    Each is cut into the upper half of its digits and what is left. The sum of either half is exact, so that the last
    addition is the only one that rounds.
    """
    upper = x.view(torch.int64).bitwise_and(-(1 << 27)).view(torch.float64)
    return upper.sum(-1) + (x - upper).sum(-1)


def take(x: Tensor, some: slice) -> Tensor:
    """Rows of a tensor; where they are all, it is the tensor itself, for a view costs a microsecond."""
    return x if some is ALL or (some.start == 0 and some.stop == len(x)) else x[some]


def blocks(shape: tuple[int, ...], elements: int) -> Iterator[slice]:
    """Slices of rows with about ``elements`` numbers each."""
    rows, step = shape[0], _step(shape, elements)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def in_blocks(elements: int, first: Tensor, *others: Any) -> Iterable[tuple[Any, ...]]:
    """Tensors of as many rows, cut into blocks with about ``elements`` numbers of the first; all else is in every block.

    torch makes all of a tensor's views in one call, in half the time that as many slices take; a single block needs none.
    """
    step = _step(first.shape, elements)
    if step >= len(first):
        return [(first, *others)]
    return zip(
        *(x.split(step) if isinstance(x, Tensor) else repeat(x) for x in (first, *others)), strict=False
    )


def _step(shape: tuple[int, ...], elements: int) -> int:
    """Rows in a block."""
    return max(1, elements // max(shape[1], 1))


def inverse_std(variance: Number, eps: float, eps_in: str) -> Number:
    """What numbers of that variance are multiplied by to have 1, see ``backends.pooled``.

    It is 0 where it would be infinite: then eps is 0, and so are they. On the CPU, where nobody waits for a number, in
    Python in place of five operations of torch.
    """
    if not isinstance(variance, Tensor) or variance.is_cpu:
        number = float(variance)
        size = math.sqrt(number + eps) if eps_in == "variance" else math.sqrt(number) + eps
        return 1 / size if 0 < size < math.inf else 0.0
    divisor = (variance + eps).sqrt_() if eps_in == "variance" else variance.sqrt() + eps
    return divisor.reciprocal_().nan_to_num_(0.0, 0.0)
