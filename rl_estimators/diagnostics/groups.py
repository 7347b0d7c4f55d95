"""Scores of responses: their spread, within and between prompts, and groups that are all right or all wrong."""

import torch
from torch import Tensor

__all__ = ["RIGHT", "WRONG", "score_numbers"]

RIGHT, WRONG = 1.0, 0.0  # full marks and none, for rewards in [0, 1] as for -1 and 1
_SLACK = 1e-6  # of a sum of several rewards in fp32


def score_numbers(scores: Tensor, rows: Tensor, ids: Tensor | None) -> dict[str, Tensor]:
    """What the scores say, by name; NaN where it is not defined.

    Args:
        scores: ``(B,)`` in fp64, finite where ``rows`` is true.
        rows: ``(B,)`` bool, true on responses that count.
        ids: ``(B,)`` group numbers below B; None if nobody knows.
    """
    weight = rows.to(scores.dtype)
    scores = torch.where(rows, scores, 0)
    mean, std = spread(scores, weight)
    found = {"reward_mean": mean, "reward_std": std}
    if ids is None:
        return found
    size, total = _over_groups(weight, ids), _over_groups(scores, ids)
    several = size >= 2
    means = total / size.clamp(min=1)
    apart = torch.where(rows, scores - means[ids], 0).square()
    # Equal scores are equal to the bit, and their mean may not be.
    lowest, highest = _extreme(scores, rows, ids, "amin"), _extreme(scores, rows, ids, "amax")
    apart = torch.where((lowest == highest)[ids], 0, apart)
    within = apart.sum() / torch.where(several, size - 1, 0).sum()
    groups = several.sum()
    between = spread(means, (size > 0).to(scores.dtype))[1]
    return {
        **found,
        "all_right_group_share": (several & (lowest >= RIGHT - _SLACK)).sum() / groups,
        "all_wrong_group_share": (several & (highest <= WRONG + _SLACK)).sum() / groups,
        "reward_std_within_groups": within.sqrt(),
        "reward_std_between_groups": torch.where(groups > 0, between, torch.nan),
    }


def spread(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the numbers with weight 1 among those with 1 and 0; NaN if too few."""
    number = weight.sum()
    if not len(x):
        return number / number, number / number
    pivot = x.gather(0, weight.argmax(0, keepdim=True))[
        0
    ]  # so that the deviation of equal numbers is exactly 0
    apart = weight * (x - pivot)
    mean = apart.sum() / number
    squares = (weight * (x - pivot - mean).square()).sum()
    return pivot + mean, (squares / (number - 1).clamp(min=0)).sqrt()


def _over_groups(x: Tensor, ids: Tensor) -> Tensor:
    """``(B,)`` sum of each group, by its number; 0 for numbers that no group has."""
    return x.new_zeros(len(x)).index_add(0, ids, x)


def _extreme(x: Tensor, rows: Tensor, ids: Tensor, which: str) -> Tensor:
    """``(B,)`` smallest or largest number of each group, by its number."""
    end = torch.inf if which == "amin" else -torch.inf
    return torch.full_like(x, end).scatter_reduce(0, ids, torch.where(rows, x, end), which)
