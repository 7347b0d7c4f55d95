"""A loss and its gradient in one reading of the batch.

A loss is a sum of terms that each depend on one trained number, a log-probability or a value. So a term's slope can be
written down while the term is, and what autograd would keep for it, some ten tensors of the batch's size, is
replaced by the slope alone, 4 bytes a token. All else stays in blocks of rows that fit the processor's cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.memory import empty
from rl_estimators.backends.rows import blocks, take, work_dtype
from rl_estimators.backends.torch_blocks import Scratch, as_bool, block_elements, cut, mask_bits, valid_number
from rl_estimators.errors import InputError

__all__ = ["Divisors", "Term", "divided", "loss_sums"]

# From the mask of a block of rows, the trained numbers and each other input, all 0 off the mask, to the losses, their
# slopes and whatever else is to be added up; each ``(R, T)`` and 0 off the mask. It may write into what it gets, but
# for the mask.
Term = Callable[..., tuple[Tensor, ...]]

# From how many valid tokens each row has, ``(B,)``, to what its sum of losses is divided by, ``(B,)`` or None for nothing,
# and what the sum of all rows is then divided by, 0-dim or a number.
Divisors = Callable[[Tensor], tuple[Tensor | None, Tensor | float]]


def loss_sums(
    term: Term, divisors: Divisors, trained: Tensor, mask: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """The loss, 0-dim; how many valid tokens each row has, ``(B,)``; and the sums over them of the term's other numbers.

    Args:
        term: See :data:`Term`.
        divisors: See :data:`Divisors`.
        trained: ``(B, T)``; the loss is differentiable in them, once.
        mask: ``(B, T)``, in any dtype.
        *others: ``(B, T)``.
    """
    found: tuple[Tensor, ...] = _LossSums.apply(trained, mask, term, divisors, *others)  # type: ignore[no-untyped-call]
    return found


def divided(sums: Tensor, by_row: Tensor | None, by_all: Tensor | float) -> Tensor:
    """The loss, 0-dim, from each row's sum and what :data:`Divisors` gives."""
    return (sums if by_row is None else sums / by_row).sum() / by_all


def _row_sum(x: Tensor) -> Tensor:
    """``(R,)``; of flags in int32, which takes half the time."""
    return x.sum(-1, dtype=torch.int32 if x.dtype == torch.bool else None)


class _LossSums(torch.autograd.Function):
    """One node from the trained numbers to the loss: of sums and quotients after it autograd would make more."""

    @staticmethod
    def forward(
        ctx: Any, trained: Tensor, mask: Tensor, term: Term, divisors: Divisors, *others: Tensor
    ) -> tuple[Tensor, ...]:
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
        sums, number, *more = (
            some[0] if len(some) == 1 else torch.cat(some) for some in zip(*found, strict=True)
        )
        by_row, by_all = divisors(number)
        loss = divided(sums, by_row, by_all)
        ctx.dtype, ctx.others, ctx.divisors = trained.dtype, len(others), (by_row, by_all)
        ctx.save_for_backward(*(() if slope is None else (slope,)))
        ctx.mark_non_differentiable(number, *more)
        return loss, number, *more

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # autograd has gradients on here for create_graph=True alone; torch's once_differentiable would let that pass, and
        # the slopes count as constants
        if torch.is_grad_enabled():
            raise InputError(
                "a loss was differentiated with create_graph=True, but it can be differentiated once only, for its "
                "slopes are computed with it; policy_loss('ppo_clip', fused=False) can be differentiated twice"
            )
        (slope,), (by_row, by_all) = ctx.saved_tensors, ctx.divisors
        scale = grad / by_all
        out = empty(slope.shape, slope.dtype, slope.device, 1)
        torch.mul(slope, scale if by_row is None else (scale / by_row)[:, None], out=out)
        return (out.to(ctx.dtype), *(None,) * (3 + ctx.others))
