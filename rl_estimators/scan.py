"""Sums from each token to the end of its response.

A masked position is no step: a scan passes over it as if it had been cut out. The recursions themselves are in
:mod:`rl_estimators.backends`.
"""

import torch
from torch import Tensor

from rl_estimators import backends

__all__ = ["discounted_sum", "k_step_return", "next_valid"]


def discounted_sum(x: Tensor, mask: Tensor, discount: float | Tensor) -> Tensor:
    r"""Discounted sum of what is still to come, counting valid tokens only.

    .. math:: y_k = x_k + d \, y_{k+1}, \qquad y_{n+1} = 0

    over the valid tokens :math:`k = 1 \dots n` of each row.

    Args:
        x: ``(B, T)``, finite where ``mask`` is true.
        mask: ``(B, T)`` bool.
        discount: :math:`d`, in [0, 1]; a ``(B,)`` tensor where rows differ.

    Returns:
        ``(B, T)``, 0 where ``mask`` is false.
    """
    return backends.discounted_sum(x, mask, discount)


def next_valid(x: Tensor, mask: Tensor, last: Tensor | None = None) -> Tensor:
    """For each position the value of ``x`` at the next valid token of its row, ``last`` after the last one.

    Args:
        x: ``(B, T)``.
        mask: ``(B, T)`` bool.
        last: ``(B,)`` what follows a row's last valid token; 0 by default.
    """
    length = x.shape[-1]
    if length == 0:
        return x
    here = torch.arange(length, device=x.device).where(mask, length)
    after = torch.full_like(here, length)
    after[:, :-1] = here[:, 1:].flip(-1).cummin(-1).values.flip(-1)
    end = x.new_zeros(len(x), 1) if last is None else last[:, None].to(x.dtype)
    return torch.cat([x, end], dim=-1).gather(-1, after)


def k_step_return(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, k: int, last: Tensor | None = None
) -> Tensor:
    r"""Discounted sum of the next k rewards, and the value of where they lead.

    .. math:: y_j = \sum_{i=0}^{m-1} d^i r_{j+i} + d^m V_{j+m}, \qquad m = \min(k, n+1-j)

    over the valid tokens :math:`j = 1 \dots n` of each row. Windows are put together from windows of 1, 2, 4, ...
    steps: about log2(k) additions, and no difference of two long sums that would lose digits.

    Args:
        rewards: ``(B, T)``.
        values: ``(B, T)``.
        mask: ``(B, T)`` bool.
        discount: :math:`d`, in [0, 1].
        k: At least 1.
        last: ``(B,)`` :math:`V_{n+1}`; 0 by default.

    Returns:
        ``(B, T)``, 0 where ``mask`` is false.
    """
    rows, length = mask.shape
    place = mask.cumsum(-1) - 1  # among the row's valid tokens
    into = place.where(mask, length + 1)  # what is masked goes into one last column, which is cut off
    blank = rewards.new_zeros(rows, length + 2)
    window = blank.scatter(-1, into, rewards)[:, :-1]
    after = blank.scatter(-1, into, values)[:, :-1]
    if last is not None:  # as one more reward, for the windows that go beyond it, and as a value
        end, last = mask.sum(-1, keepdim=True), last[:, None].to(rewards.dtype)
        window, after = window.scatter(-1, end, last), after.scatter(-1, end, last)
    k = min(k, length + 1)
    total, covered, size = torch.zeros_like(window), 0, 1
    while covered < k:
        if k & size:
            total = total + discount**covered * _ahead(window, covered)
            covered += size
        window = window + discount**size * _ahead(window, size)
        size *= 2
    total = total + discount**k * _ahead(after, k)
    return torch.where(mask, total.gather(-1, place.clamp(min=0)), 0)


def _ahead(x: Tensor, steps: int) -> Tensor:
    """What stands ``steps`` columns further on, 0 beyond the end."""
    return torch.cat([x[:, steps:], torch.zeros_like(x[:, :steps])], dim=-1)
