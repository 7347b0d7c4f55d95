"""TRL's group statistics to the bit, rounding errors included, for runs that must repeat what TRL's own trainer did.

Source: TRL 1.16.0, the advantages in ``trl/trainer/grpo_trainer.py`` and ``nanstd`` in ``trl/trainer/utils.py``. The
rest of this package uses :mod:`rl_estimators.masked`, where numbers that are equal have a spread of exactly 0.
"""

import torch
from torch import Tensor

__all__ = ["group_advantages"]


def group_advantages(
    scores: Tensor,
    ids: Tensor,
    rows: Tensor,
    epsilon: float | None,
    ddof: int = 1,
    std_over: str = "group",
) -> Tensor:
    r"""``(B,)`` each score minus its group's mean, over the group's or the batch's standard deviation plus epsilon.

    The order of operations is TRL's: NaN-aware means over a matrix with a group in each row, in the scores' own
    precision; Bessel's correction multiplied onto the mean square; what comes out as NaN becomes 0. Groups of
    unequal size, which TRL does not have, are filled up with NaN.

    Args:
        scores: ``(B,)``, finite where ``rows`` is true.
        ids: ``(B,)`` group numbers below B, from :func:`rl_estimators.masked.group_ids`.
        rows: ``(B,)`` bool, true on responses that count.
        epsilon: Added to the standard deviation; None to leave the division out.
        ddof: 1 for the unbiased standard deviation, 0 for the one of the sample.
        std_over: ``"group"`` or ``"batch"``.
    """
    place = _place_in_group(ids)
    if not len(ids):
        return torch.zeros_like(scores)
    table = scores.new_full((int(ids.max()) + 1, int(place.max()) + 1), torch.nan)
    table[ids, place] = torch.where(rows, scores, torch.nan)
    centred = table - table.nanmean(dim=1, keepdim=True)
    if epsilon is not None:
        whole = table if std_over == "group" else torch.where(rows, scores, torch.nan)[None]
        centred = centred / (_std(whole, ddof) + epsilon)
    return centred[ids, place].nan_to_num(nan=0.0)


def _std(table: Tensor, ddof: int) -> Tensor:
    """``(G, 1)``, NaN in a row with no more than ``ddof`` numbers."""
    mean = table.nanmean(dim=1, keepdim=True)
    number = (~table.isnan()).sum(dim=1, keepdim=True).to(table.dtype)
    correction = torch.where(number > ddof, number / (number - ddof), torch.nan)
    return (((table - mean) ** 2).nanmean(dim=1, keepdim=True) * correction).sqrt()


def _place_in_group(ids: Tensor) -> Tensor:
    """``(B,)`` how many of the same group come before."""
    order = ids.argsort(stable=True)
    sizes = ids.bincount()
    place = torch.empty_like(ids)
    place[order] = torch.arange(len(ids), device=ids.device) - (sizes.cumsum(0) - sizes)[ids[order]]
    return place
