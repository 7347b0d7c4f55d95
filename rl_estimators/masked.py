"""Statistics over the tokens and responses that count.

Three rules hold for every estimator, and are kept here:

- What is stored at a masked position, NaN included, never meets a valid token: it is cut off by selection
  (``where``), never by multiplication, for 0 * NaN is NaN.
- A response with a number that is not finite at a valid token has no usable score, nor has one whose rewards add
  up to more than their dtype holds. It is left out of all statistics, gets the advantage 0 and is counted as
  ``excluded_responses``. A response without valid tokens (a framework's padding row) is left out as well, and not counted.
- Numbers that are all equal have a spread of exactly 0. Subtracting a pivot that is one of the numbers makes
  them exact zeros before any mean is taken; it also spares small differences between large numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_estimators import backends
from rl_estimators.backends.rows import double_sum, widest
from rl_estimators.errors import InputError
from rl_estimators.fields import as_index
from rl_estimators.metrics import count

__all__ = [
    "GroupMoments",
    "Grouped",
    "Valid",
    "alone",
    "as_mask",
    "group_ahead_of_others",
    "group_centred",
    "group_ids",
    "group_lead",
    "group_max",
    "group_min",
    "group_moments",
    "group_sum",
    "grouped",
    "over_std",
    "scored",
    "scored_rows",
    "select",
    "to_tokens",
    "valid",
]


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
    finite = torch.isfinite(exact_sum(rewards))
    for other in others:
        sound = torch.isfinite(other) if other.ndim == 1 else torch.isfinite(select(other, mask)).all(-1)
        finite = finite & sound
    written = mask.any(-1)
    count("excluded_responses", lambda: (written & ~finite).sum())
    rows = written & finite
    mask = mask & rows[:, None]
    return Valid(torch.where(mask, rewards, 0), mask, rows)


def group_ids(index: np.ndarray[Any, Any] | Sequence[Any] | Tensor, device: torch.device) -> Tensor:
    """Number the groups 0, 1, ... in order of appearance, as a ``(B,)`` integer tensor.

    Two responses share a group when their entries in ``index`` are equal as Python objects: "1", "01" and 1 are
    three groups.

    Raises:
        InputError: an entry cannot be hashed.
    """
    names = as_index(index).tolist()
    try:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    except TypeError as error:
        raise InputError(
            f"index holds an entry that cannot be compared ({error}); use strings or integers"
        ) from None
    ids = np.fromiter(map(numbers.__getitem__, names), np.int64, len(names))
    return torch.from_numpy(ids).to(device)


class Grouped(NamedTuple):
    """One score per response, and whom it is compared with.

    Attributes:
        scores: ``(B,)`` sum of the response's valid rewards, 0 where it does not count.
        ids: ``(B,)`` group numbers below B.
        rows: ``(B,)`` bool, true on responses that count.
        mask: ``(B, T)`` bool, true on tokens that count.
    """

    scores: Tensor
    ids: Tensor
    rows: Tensor
    mask: Tensor


def grouped(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray[Any, Any] | Sequence[Any] | Tensor,
    *others: Tensor,
) -> Grouped:
    """What every estimator that compares the answers to one prompt starts from.

    Args:
        token_level_rewards: ``(B, T)``.
        response_mask: ``(B, T)`` bool, integer or float.
        index: ``(B,)`` the prompt of each response.
        *others: As in :func:`valid`.
    """
    if others:
        rewards, mask, rows = valid(token_level_rewards, response_mask, *others)
        return Grouped(exact_sum(rewards), group_ids(index, rewards.device), rows, mask)
    scores, ids, rows = scored(token_level_rewards, response_mask, index)
    return Grouped(scores, ids, rows, as_mask(response_mask) & rows[:, None])


def scored(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray[Any, Any] | Sequence[Any] | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`grouped`, without the mask, for callers that do not need it: the batch is read and written once less."""
    return scored_rows(backends.scores(token_level_rewards, response_mask), token_level_rewards, index)


def scored_rows(
    read: backends.Rows, token_level_rewards: Tensor, index: np.ndarray[Any, Any] | Sequence[Any] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`scored`, for callers that keep what :func:`rl_estimators.backends.scores` has read.

    They hand it to :func:`to_tokens`.
    """
    scores = read.total.to(backends.work_dtype(token_level_rewards))
    return scores, group_ids(index, scores.device), read.counts


def exact_sum(x: Tensor) -> Tensor:
    """``(B,)`` sum over each row, the same in whatever order and at whatever places its numbers stand.

    fp32 numbers of similar size are added in fp64 without rounding, so that equal scores are equal to the bit; for fp64
    see :func:`rl_estimators.backends.rows.double_sum`.
    """
    if x.dtype == torch.float64:
        return double_sum(x)
    return x.to(widest(x.device)).sum(-1).to(x.dtype)


def to_tokens(x: Tensor, mask: Tensor, read: backends.Rows | None = None) -> Tensor:
    """``(B,)`` numbers on every valid token of their response, 0 elsewhere; the mask may have any dtype.

    Args:
        x: ``(B,)``.
        mask: ``(B, T)``.
        read: What a kernel found in that mask; then x is 0 in a response that is excluded there.
    """
    return backends.spread(x, mask, read)


def group_sum(x: Tensor, ids: Tensor) -> Tensor:
    """``(B,)`` sum over each response's group, handed back to each of its responses.

    A CUDA device adds in whatever order comes: in fp64, so that it is not seen in fp32.
    """
    wide = x.double() if x.dtype == torch.float32 and x.device.type == "cuda" else x
    return wide.new_zeros(len(x)).index_add(0, ids, wide)[ids].to(x.dtype)


def group_max(x: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """``(B,)`` largest number among those of each response's group that count; -inf if none does."""
    lowest = torch.full_like(x, -torch.inf)
    return lowest.scatter_reduce(0, ids, torch.where(rows, x, -torch.inf), "amax")[ids]


def group_min(x: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """``(B,)`` smallest number among those of each response's group that count; inf if none does."""
    return -group_max(-x, ids, rows)


def group_lead(x: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """``(B,)`` by how much a response is ahead of the second of its group; 0 if it is not the only best, or alone."""
    top = group_max(x, ids, rows)
    best = rows & (x == top)
    second = group_max(x, ids, rows & ~best)
    leads = best & (group_sum(best.to(x.dtype), ids) == 1) & second.isfinite()
    return torch.where(leads, x - second, 0)


def group_centred(
    x: Tensor, ids: Tensor, rows: Tensor, weights: Tensor | None = None, singleton: str = "zero"
) -> Tensor:
    """``(B,)`` each number minus its group's mean, 0 where it does not count.

    Args:
        x: ``(B,)`` one number per response, finite where ``rows`` is true.
        ids: ``(B,)`` group numbers below B.
        rows: ``(B,)`` bool, true on responses that count.
        weights: ``(B,)``, at least 0 and above 0 where ``rows`` is true; the mean is weighted by them.
        singleton: What a group of one gets: ``"zero"``, or its ``"raw"`` number, as if the mean were 0.
    """
    weights = torch.where(rows, 1 if weights is None else weights, 0).to(x.dtype)
    shifted = torch.where(rows, x - group_min(x, ids, rows), 0)
    mean = group_sum(weights * shifted, ids) / group_sum(weights, ids)
    centred = torch.where(rows, shifted - mean, 0)
    return torch.where(alone(ids, rows), x, centred) if singleton == "raw" else centred


def alone(ids: Tensor, rows: Tensor) -> Tensor:
    """``(B,)`` bool, true on a response that counts and has no sibling that does."""
    return rows & (group_sum(rows.long(), ids) == 1)


def group_ahead_of_others(x: Tensor, ids: Tensor, rows: Tensor, singleton: str = "zero") -> Tensor:
    """``(B,)`` each number minus the mean of the others of its group; as :func:`group_centred` in a group of one."""
    size = group_sum(rows.to(x.dtype), ids)
    return group_centred(x, ids, rows, singleton=singleton) * size / (size - 1).clamp(min=1)


class GroupMoments(NamedTuple):
    """Statistics of each response's group, all ``(B,)``.

    Attributes:
        centred: The response's number minus its group's mean; 0 where the response does not count.
        std: Standard deviation of the group; 0 in a group of one, or 1 where that has its raw number.
    """

    centred: Tensor
    std: Tensor


def group_moments(
    x: Tensor, ids: Tensor, rows: Tensor, ddof: int = 1, singleton: str = "zero"
) -> GroupMoments:
    """Centre each response on its group.

    Args:
        x: ``(B,)`` one number per response, finite where ``rows`` is true.
        ids: ``(B,)`` group numbers below B, from :func:`group_ids`.
        rows: ``(B,)`` bool, true on responses that count.
        ddof: 1 for the unbiased standard deviation, 0 for the one of the sample.
        singleton: As in :func:`group_centred`.
    """
    centred = group_centred(x, ids, rows)
    wide = centred.to(widest(x.device))  # fp32 does not hold the squares of 1e20 and 1e-25
    size = group_sum(rows.to(wide.dtype), ids)
    std = (group_sum(wide.square(), ids) / (size - ddof).clamp(min=1)).sqrt().to(x.dtype)
    if singleton == "raw":
        lone = alone(ids, rows)
        centred, std = torch.where(lone, x, centred), torch.where(lone, 1.0, std)
    return GroupMoments(centred, std)


def over_std(moments: GroupMoments, epsilon: float) -> Tensor:
    """``(B,)`` in units of the group's standard deviation plus epsilon; exactly 0 where that is 0."""
    return torch.where(moments.std > 0, moments.centred / (moments.std + epsilon), 0)
