"""In how far two estimators say the same, and where an estimator puts its weight.

All numbers are computed in float64 from advantages as an estimator returned them.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_estimators.backends.rows import in_blocks
from rl_estimators.compare.packed import BLOCK
from rl_estimators.masked import as_mask

__all__ = ["per_response", "rank_matrix", "sign_disagreement", "signal"]

_TIE = 1e-6  # two numbers nearer than this, relative to the larger one, differ by rounding


def per_response(advantages: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` mean advantage of a response's valid tokens; 0 where it has none.

    The first valid token's number is taken off before the mean and added after it: where all tokens have one advantage,
    the mean is that number to the bit, however long the response.

    Args:
        advantages: ``(B, T)``; read at valid positions only.
        mask: ``(B, T)``, nonzero on valid tokens.

    Returns:
        ``(B,)`` in float64.
    """
    valid = as_mask(mask)
    if not valid.numel():
        return torch.zeros(len(valid), dtype=torch.float64)
    return torch.cat([_means(*part) for part in in_blocks(BLOCK, advantages, valid)])


def _means(advantages: Tensor, valid: Tensor) -> Tensor:
    numbers = torch.where(valid, advantages, 0).double()
    first = numbers.gather(-1, valid.int().argmax(-1, keepdim=True))
    shifted = torch.where(valid, numbers - first, 0)
    means = first.squeeze(-1) + shifted.sum(-1) / valid.sum(-1).clamp(min=1)
    return torch.where(valid.any(-1), means, 0)


def rank_matrix(columns: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    r"""Spearman's rank correlation of every two: whether estimators put responses in the same order.

    .. math:: \rho = \mathrm{corr}(\mathrm{rank}(a), \mathrm{rank}(b))

    1: the same order; 0: unrelated; -1: reversed. Ties share the mean of their ranks; numbers that differ by rounding
    only (1e-6 of the larger one) are ties.

    Args:
        columns: K of them, each ``(B,)``, one finite number for each response.

    Returns:
        ``(K, K)``; NaN where one of the two ranks all responses alike, or there are fewer than two: there is no order to
        compare.
    """
    return _correlations([_ranks(column) for column in columns])


def sign_disagreement(a: Any, b: Any) -> float:
    """Share of responses that one of the two praises (above 0) and the other blames (below 0).

    Of all responses with finite numbers: one that either of the two gives 0 counts as no disagreement, for then one of
    them says nothing.

    Args:
        a: ``(B,)`` one number for each response, tensor or array.
        b: ``(B,)``, likewise.

    Returns:
        In [0, 1]; NaN without responses.
    """
    first, second = _both_finite(a, b)
    return float(np.mean(first * np.sign(second) < 0)) if first.size else float("nan")


class Signal(NamedTuple):
    """Where an estimator puts its weight; G prompts in order of appearance.

    Attributes:
        groups: The prompts' names, as in ``index``.
        shares: ``(G,)`` each prompt's part of the sum of absolute advantages over all tokens; all 0 if that sum is 0.
        carrying: Share of prompts with any advantage other than 0; NaN without prompts.
        largest: The largest of ``shares``: near 1, a single prompt decides the update; 0 without prompts.
    """

    groups: list[Any]
    shares: NDArray[np.float64]
    carrying: float
    largest: float


def signal(advantages: Tensor, mask: Tensor, index: Any) -> Signal:
    r"""Which prompts an estimator's update comes from.

    .. math:: w_g = \frac{\sum_{b \in g} \sum_t |A_{bt}|}{\sum_{b} \sum_t |A_{bt}|}

    over valid tokens.

    Args:
        advantages: ``(B, T)``.
        mask: ``(B, T)``, nonzero on valid tokens.
        index: ``(B,)`` the prompt of each response: list, array or tensor.
    """
    weights = torch.where(as_mask(mask), advantages, 0).abs().sum(-1, dtype=torch.float64).numpy()
    names = index.tolist() if isinstance(index, (Tensor, np.ndarray)) else list(index)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    sums = np.zeros(len(numbers))
    np.add.at(sums, [numbers[name] for name in names], weights)
    total = sums.sum()
    shares = sums / total if total > 0 else np.zeros_like(sums)
    carrying = float(np.mean(sums > 0)) if len(sums) else float("nan")
    return Signal(list(numbers), shares, carrying, float(shares.max(initial=0.0)))


def _both_finite(a: Any, b: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = (np.asarray(x, dtype=np.float64) for x in (a, b))
    kept = np.isfinite(first) & np.isfinite(second)
    return first[kept], second[kept]


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, ties at the mean of theirs."""
    order = np.argsort(x, kind="stable")
    ordered = x[order]
    larger = np.maximum(np.abs(ordered[1:]), np.abs(ordered[:-1]))
    runs = np.concatenate([[0], np.cumsum(np.diff(ordered) > _TIE * larger)]) if x.size else order
    ranks = np.empty(x.size)
    means = np.bincount(runs, np.arange(x.size)) / np.maximum(np.bincount(runs), 1)
    ranks[order] = means[runs]
    return ranks


def _correlations(ranks: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Pearson's, NaN where a column does not vary."""
    table = np.array([column - column.mean() if column.size else column for column in ranks])
    lengths = np.sqrt((table**2).sum(-1))
    scale = np.outer(lengths, lengths)
    products = table @ table.T
    return np.where(scale > 0, np.clip(products / np.where(scale > 0, scale, 1), -1, 1), np.nan)
