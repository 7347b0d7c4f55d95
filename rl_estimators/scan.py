"""Sums from each token to the end of its response.

A masked position is no step: a scan passes over it as if it had been cut out. The recursions themselves
are exact and sequential; where the discount is 1 they are plain cumulative sums.
"""

import torch
from torch import Tensor

__all__ = ["discounted_sum", "next_valid"]


def discounted_sum(x: Tensor, mask: Tensor, discount: float) -> Tensor:
    r"""Discounted sum of what is still to come, counting valid tokens only.

    .. math:: y_k = x_k + d \, y_{k+1}, \qquad y_{n+1} = 0

    over the valid tokens :math:`k = 1 \dots n` of each row.

    Args:
        x: ``(B, T)``, 0 where ``mask`` is false.
        mask: ``(B, T)`` bool.
        discount: :math:`d`, in [0, 1].

    Returns:
        ``(B, T)``, 0 where ``mask`` is false.
    """
    if discount == 1:
        total = x.flip(-1).cumsum(-1).flip(-1)
    elif discount == 0:
        total = x
    else:
        total = _recursion(x, mask, discount)
    return torch.where(mask, total, 0)


def next_valid(x: Tensor, mask: Tensor) -> Tensor:
    """For each position the value of ``x`` at the next valid token of its row, 0 after the last one.

    Args:
        x: ``(B, T)``.
        mask: ``(B, T)`` bool.
    """
    length = x.shape[-1]
    if length == 0:
        return x
    here = torch.arange(length, device=x.device).where(mask, length)
    after = torch.full_like(here, length)
    after[:, :-1] = here[:, 1:].flip(-1).cummin(-1).values.flip(-1)
    return torch.cat([x, x.new_zeros(len(x), 1)], dim=-1).gather(-1, after)


def _recursion(x: Tensor, mask: Tensor, discount: float) -> Tensor:
    """One fused multiply-add a step, on columns laid out as rows: strided columns would miss the cache."""
    steps = x.t().contiguous()
    decays = torch.ones_like(steps).masked_fill_(mask.t(), discount)
    for t in range(len(steps) - 2, -1, -1):
        steps[t].addcmul_(decays[t], steps[t + 1])
    return steps.t()
