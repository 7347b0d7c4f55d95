"""A loss and its gradient in one reading of the batch.

A loss is a sum of terms that each depend on one trained number, a log-probability or a value. So a term's slope can be
written down while the term is, and what autograd would keep for it, some ten tensors of the batch's size, is
replaced by the slope alone, 4 bytes a token. All else stays in blocks of rows that fit the processor's cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_estimators.backends.memory import empty
from rl_estimators.backends.rows import blocks, take, work_dtype
from rl_estimators.backends.torch_blocks import Scratch, as_bool, block_elements, cut, mask_bits, valid_number

__all__ = ["Term", "row_sums"]

# From the mask of a block of rows, the trained numbers and each other input, all 0 off the mask, to the losses, their
# slopes and whatever else is to be added up; each ``(R, T)`` and 0 off the mask. It may write into what it gets, but
# for the mask.
Term = Callable[..., tuple[Tensor, ...]]


def row_sums(term: Term, trained: Tensor, mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Sums over each row's valid tokens, ``(B,)`` each: losses, how many tokens, then the term's other numbers.

    Args:
        term: See :data:`Term`.
        trained: ``(B, T)``; the first sum is differentiable in them, once.
        mask: ``(B, T)``, in any dtype.
        *others: ``(B, T)``.
    """
    sums: tuple[Tensor, ...] = _RowSums.apply(trained, mask, term, *others)  # type: ignore[no-untyped-call]
    return sums


def _row_sum(x: Tensor) -> Tensor:
    """``(R,)``; of flags in int32, which takes half the time."""
    return x.sum(-1, dtype=torch.int32 if x.dtype == torch.bool else None)


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trained: Tensor, mask: Tensor, term: Term, *others: Tensor) -> tuple[Tensor, ...]:
        dtype = work_dtype(trained, *others)
        slope = None
        found, scratch = [], Scratch(mask.device)
        shape = (max(len(mask), 1), mask.shape[1])  # an empty batch is one block
        elements = block_elements(mask)
        if mask.device.type == "cpu":
            elements //= 2  # a term has more in between than a scan
        parts = [*blocks(shape, elements)]
        many = len(parts) > 1  # one block takes what it needs as it comes: there is no next one
        for some in parts:
            valid = as_bool(take(mask, some), scratch)
            bits = mask_bits(valid, dtype, scratch if many else None)
            inputs = [
                cut(take(x, some), bits, scratch(f"input {n}", valid.shape, dtype) if many else None)
                for n, x in enumerate((trained, *others))
            ]
            losses, slopes, *more = term(valid, *inputs)
            if ctx.needs_input_grad[0]:
                if not many:
                    slope = slopes.expand(mask.shape)
                else:
                    slope = empty(mask.shape, dtype, mask.device) if slope is None else slope
                    slope[some] = slopes
            found.append([_row_sum(losses), valid_number(bits), *map(_row_sum, more)])
        sums = tuple(some[0] if len(some) == 1 else torch.cat(some) for some in zip(*found, strict=True))
        ctx.dtype, ctx.others = trained.dtype, len(others)
        ctx.save_for_backward(*(() if slope is None else (slope,)))
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        out = empty(slope.shape, slope.dtype, slope.device, 1)
        torch.mul(slope, grad[:, None].to(slope.dtype), out=out)
        return (out.to(ctx.dtype), *(None,) * (2 + ctx.others))
