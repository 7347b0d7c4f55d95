"""Statistics over the tokens and responses that count.

Three rules hold for every estimator, and are kept here:

- What is stored at a masked position, NaN included, never meets a valid token: it is cut off by selection
  (``where``), never by multiplication, for 0 * NaN is NaN.
- A response with a number that is not finite at a valid token has no usable score. It is left out of all
  statistics, gets the advantage 0 and is counted as ``excluded_responses``. So is, silently, a response
  without valid tokens: a framework's padding row.
- Numbers that are all equal have a spread of exactly 0. Subtracting a pivot that is one of the numbers makes
  them exact zeros before any mean is taken; it also spares small differences between large numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_estimators.fields import as_index
from rl_estimators.metrics import count

__all__ = ["Valid", "as_mask", "group_ids", "group_moments", "select", "valid", "whiten"]


class Valid(NamedTuple):
    """What is left of a batch once everything that must not count is cut off.

    Attributes:
        rewards: ``(B, T)`` in fp32 (fp64 if any input is), 0 where ``mask`` is false.
        mask: ``(B, T)`` bool, true on tokens that count; all false in an excluded response.
        rows: ``(B,)`` bool, true on responses that count.
    """

    rewards: Tensor
    mask: Tensor
    rows: Tensor


def as_mask(mask: Tensor) -> Tensor:
    """A bool, integer or float mask as bool."""
    return mask if mask.dtype == torch.bool else mask != 0


def select(x: Tensor, mask: Tensor, *others: Tensor) -> Tensor:
    """``x`` where ``mask`` is true and 0 elsewhere, in fp32, or fp64 if it or one of ``others`` is."""
    dtype = torch.float64 if torch.float64 in {t.dtype for t in (x, *others)} else torch.float32
    return torch.where(mask, x, 0).to(dtype)


def valid(token_level_rewards: Tensor, response_mask: Tensor, *others: Tensor) -> Valid:
    """Cut off what must not count.

    Args:
        token_level_rewards: ``(B, T)``.
        response_mask: ``(B, T)`` bool, integer or float.
        *others: Further inputs that must be finite, ``(B, T)`` on valid tokens or ``(B,)``.
    """
    mask = as_mask(response_mask)
    rewards = select(token_level_rewards, mask, *others)
    finite = torch.isfinite(rewards.sum(-1))
    for other in others:
        total = other if other.ndim == 1 else select(other, mask).sum(-1)
        finite = finite & torch.isfinite(total)
    written = mask.any(-1)
    count("excluded_responses", lambda: (written & ~finite).sum())
    rows = written & finite
    mask = mask & rows[:, None]
    return Valid(torch.where(mask, rewards, 0), mask, rows)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    r"""Shift and scale the valid numbers to mean 0 and variance 1; 0 elsewhere.

    .. math:: y_i = (x_i - \bar x) / \sqrt{s^2 + 10^{-8}}, \quad s^2 = \sum_i (x_i - \bar x)^2 / (n - 1)

    As verl's ``masked_whiten``, but with 0 or 1 valid numbers or none that differ, all are exactly 0.

    Args:
        x: Any shape, finite where ``mask`` is true.
        mask: Same shape, bool.
    """
    number = mask.sum()
    pivot = torch.where(mask, x, torch.inf).amin() if x.numel() else x.sum()
    shifted = torch.where(mask, x - pivot, 0)
    centred = torch.where(mask, shifted - shifted.sum() / number, 0)
    variance = centred.square().sum() / (number - 1).clamp(min=1)
    return centred * (variance + 1e-8).rsqrt()


def group_ids(index: np.ndarray[Any, Any] | Sequence[Any] | Tensor, device: torch.device) -> Tensor:
    """Number the groups 0, 1, ... in order of appearance, as a ``(B,)`` integer tensor.

    Two responses share a group when their entries in ``index`` are equal as Python objects: "1", "01" and 1 are
    three groups.
    """
    numbers: dict[Any, int] = {}
    ids = [numbers.setdefault(name, len(numbers)) for name in as_index(index).tolist()]
    return torch.tensor(ids, dtype=torch.long, device=device)


class GroupMoments(NamedTuple):
    """Statistics of each response's group, all ``(B,)``.

    Attributes:
        centred: The response's number minus its group's mean; 0 where the response does not count.
        std: Unbiased standard deviation of the group; 0 in a group of one.
        size: How many responses of the group count.
    """

    centred: Tensor
    std: Tensor
    size: Tensor


def group_moments(x: Tensor, ids: Tensor, rows: Tensor) -> GroupMoments:
    """Centre each response on its group.

    Args:
        x: ``(B,)`` one number per response, finite where ``rows`` is true.
        ids: ``(B,)`` group numbers below B, from :func:`group_ids`.
        rows: ``(B,)`` bool, true on responses that count.
    """

    def by_group(y: Tensor) -> Tensor:  # sum over the group, handed back to each of its responses
        return y.new_zeros(len(y)).index_add(0, ids, y)[ids]

    size = by_group(rows.to(x.dtype))
    lowest = torch.where(rows, x, torch.inf)
    pivot = torch.full_like(x, torch.inf).scatter_reduce(0, ids, lowest, "amin")[ids]
    shifted = torch.where(rows, x - pivot, 0)
    centred = torch.where(rows, shifted - by_group(shifted) / size, 0)
    std = (by_group(centred.square()) / (size - 1).clamp(min=1)).sqrt()
    return GroupMoments(centred, std, size)
