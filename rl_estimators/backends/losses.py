"""A loss and its gradient in one reading of the batch.

A loss is a sum of terms that each depend on one trained number, a log-probability or a value. So a term's slope can be
written down while the term is, and what autograd would keep for it, some ten tensors of the batch's size, is
replaced by the slope alone, 4 bytes a token. All else stays in blocks of rows that fit the processor's cache.
"""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.memory import empty
from rl_estimators.backends.rows import in_blocks, work_dtype
from rl_estimators.backends.torch_blocks import Scratch, as_bool, block_elements, cut, mask_bits, valid_number
from rl_estimators.errors import InputError

__all__ = ["Divisors", "Term", "divided", "loss_and_means"]

# From the mask of a block of rows, the trained numbers and each other input, all 0 off the mask, to the losses, their
# slopes and whatever else is to be added up; each ``(R, T)`` and 0 off the mask. It may write into what it gets, but
# for the mask.
Term = Callable[..., tuple[Tensor, ...]]

# From how many valid tokens each row has, ``(B,)``, and how many all have, 0-dim and at least 1, to what a row's sum of
# losses is divided by, ``(B,)`` or None for nothing, and what the sum of all rows is then divided by, 0-dim or a number.
Divisors = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor | float]]


def loss_and_means(
    term: Term, divisors: Divisors, trained: Tensor, mask: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """The loss, and the means over all valid tokens of the term's other numbers, each 0-dim.

    Args:
        term: See :data:`Term`.
        divisors: See :data:`Divisors`.
        trained: ``(B, T)``; the loss is differentiable in them, once.
        mask: ``(B, T)``, in any dtype.
        *others: ``(B, T)``.
    """
    found: tuple[Tensor, ...] = _Fused.apply(trained, mask, term, divisors, *others)  # type: ignore[no-untyped-call]
    return found


def divided(sums: Tensor, by_row: Tensor | None, by_all: Tensor | float) -> Tensor:
    """The loss, 0-dim, from each row's sum and what :data:`Divisors` gives."""
    return (sums if by_row is None else sums / by_row).sum() / by_all


def _row_sum(x: Tensor) -> Tensor:
    """``(R,)``; of flags in int32, which takes half the time."""
    return x.sum(-1, dtype=torch.int32 if x.dtype == torch.bool else None)


class _Fused(torch.autograd.Function):
    """One node from the trained numbers to the loss: of sums and quotients after it autograd would make more."""

    @staticmethod
    def forward(
        ctx: Any, trained: Tensor, mask: Tensor, term: Term, divisors: Divisors, *others: Tensor
    ) -> tuple[Tensor, ...]:
        dtype, scratch = work_dtype(trained, *others), Scratch(mask.device)
        elements = block_elements(mask)
        if mask.is_cpu:
            elements //= 2  # a term has more in between than a scan
        parts = [*in_blocks(elements, mask, trained, *others)]
        many = len(parts) > 1  # one block takes what it needs as it comes: there is no next one
        slope = empty(mask.shape, dtype, mask.device) if many and ctx.needs_input_grad[0] else None
        into = repeat(None) if slope is None else slope.split(len(parts[0][0]))
        found = []
        for (here, *block), out in zip(parts, into, strict=False):
            valid = as_bool(here, scratch)
            bits = mask_bits(valid, dtype, scratch if many else None)
            inputs = [
                cut(x, bits, scratch(f"input {n}", valid.shape, dtype) if many else None)
                for n, x in enumerate(block)
            ]
            losses, slopes, *more = term(valid, *inputs)
            if out is not None:
                out.copy_(slopes)
            elif ctx.needs_input_grad[0]:
                slope = slopes.expand(mask.shape)
            found.append([_row_sum(losses), valid_number(bits), *map(_row_sum, more)])
        sums, number, *more = (
            some[0] if len(some) == 1 else torch.cat(some) for some in zip(*found, strict=True)
        )
        tokens = number.sum().clamp_(min=1)
        by_row, by_all = divisors(number, tokens)
        means = [x.sum() / tokens for x in more]
        ctx.dtype, ctx.others, ctx.divisors = trained.dtype, len(others), (by_row, by_all)
        ctx.save_for_backward(*(() if slope is None else (slope,)))
        ctx.mark_non_differentiable(*means)
        ctx.set_materialize_grads(False)  # zeros for each of the means
        return divided(sums, by_row, by_all), *means

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
