"""From a loss per token to one number: the five ways that verl names."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.losses import Term, divided, loss_and_means
from rl_estimators.errors import InputError
from rl_estimators.fields import check_choice, check_number
from rl_estimators.masked import select

__all__ = ["MODES", "aggregate", "aggregate_terms", "masked_mean"]

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
_INFO = ("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")


def aggregate(
    losses: Tensor,
    mask: Tensor,
    loss_agg_mode: str = "token-mean",
    global_batch_info: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""Reduce a loss per token to a scalar.

    With :math:`n_b` valid tokens in row b, N valid tokens and S rows that have any:

    ==========================  =====================================================
    ``token-mean``              :math:`\sum_{b,t} L_{bt} / N`
    ``token-sum``               :math:`\sum_{b,t} L_{bt}`
    ``seq-mean-token-sum``      :math:`\sum_b \sum_t L_{bt} / S`
    ``seq-mean-token-sum-norm`` :math:`\sum_b \sum_t L_{bt} / (S \cdot T)`
    ``seq-mean-token-mean``     :math:`\sum_b (\sum_t L_{bt} / n_b) / S`
    ==========================  =====================================================

    Departures from verl's ``agg_loss``: NaN at masked positions stays out, a batch without valid tokens gives 0
    rather than NaN, and a row's mean divides by :math:`n_b` without the added 1e-8.

    Args:
        losses: ``(B, T)``.
        mask: ``(B, T)`` bool.
        loss_agg_mode: One of :data:`MODES`.
        global_batch_info: What verl's losses get under this name. ``batch_num_tokens`` replaces N,
            ``global_batch_size`` replaces S and ``loss_scale_factor`` replaces T, so that the sum over
            micro-batches is the whole batch's loss; ``dp_size`` multiplies, for gradients that are averaged
            over data-parallel ranks.

    Returns:
        A 0-dim tensor.

    Raises:
        InputError: an unknown mode or key, a value that is no number, or ``dp_size`` > 1 without the global count it needs.
    """
    sums, number = torch.where(mask, losses, 0).sum(-1), mask.sum(-1)
    tokens = _at_least_one(number.sum())
    return divided(sums, *_divisors(number, tokens, mask.shape[-1], loss_agg_mode, global_batch_info))


def _divisors(
    number: Tensor,
    tokens: Tensor,
    length: int,
    loss_agg_mode: str,
    global_batch_info: Mapping[str, Any] | None,
) -> tuple[Tensor | None, Any]:
    """What each row's sum is divided by, and then the sum of all: see :data:`rl_estimators.backends.losses.Divisors`.

    Args:
        number: ``(B,)`` how many valid tokens a row has.
        tokens: 0-dim, how many all have, at least 1.
        length: T.
        loss_agg_mode: One of :data:`MODES`.
        global_batch_info: As in :func:`aggregate`.
    """
    check_choice("aggregate", "loss_agg_mode", loss_agg_mode, MODES)
    given = {} if global_batch_info is None else global_batch_info
    if not isinstance(given, Mapping):
        raise InputError(
            f"aggregate: global_batch_info is {given!r}, expected numbers by name: {', '.join(_INFO)}"
        )
    info = {name: value for name, value in given.items() if value is not None}
    for name in info:
        check_choice("aggregate", "a key of global_batch_info", name, _INFO)
    check_number("aggregate", **info)
    needs = {"token-mean": "batch_num_tokens", "token-sum": None}.get(loss_agg_mode, "global_batch_size")
    ranks = info.get("dp_size", 1)
    if ranks > 1 and needs is not None and needs not in info:
        raise InputError(f"aggregate: {loss_agg_mode!r} with dp_size={ranks} needs {needs}, over all ranks")

    whole: Any = 1
    if loss_agg_mode == "token-mean":
        whole = _at_least_one(info["batch_num_tokens"]) if "batch_num_tokens" in info else tokens
    elif loss_agg_mode != "token-sum":
        whole = _at_least_one(info.get("global_batch_size", (number > 0).sum()))
    if loss_agg_mode == "seq-mean-token-sum-norm":
        whole = whole * info.get("loss_scale_factor", _at_least_one(length))
    by_row = number.clamp(min=1) if loss_agg_mode == "seq-mean-token-mean" else None
    return by_row, whole if ranks == 1 else whole / ranks


def aggregate_terms(
    term: Term,
    trained: Tensor,
    mask: Tensor,
    loss_agg_mode: str,
    global_batch_info: Mapping[str, Any] | None,
    *others: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """As :func:`aggregate`, in one reading of the batch; and the means over valid tokens of what else a term gives.

    Args:
        term: Gets a block's mask, ``trained`` and ``others``, see :data:`rl_estimators.backends.losses.Term`.
        trained: ``(B, T)``; the loss is differentiable in them alone.
        mask: ``(B, T)``, in any dtype.
        loss_agg_mode: One of :data:`MODES`.
        global_batch_info: As in :func:`aggregate`.
        *others: ``(B, T)``, what the term needs beside them.
    """
    divisors = partial(
        _divisors, length=mask.shape[-1], loss_agg_mode=loss_agg_mode, global_batch_info=global_batch_info
    )
    loss, *means = loss_and_means(term, divisors, trained, mask, *(x.detach() for x in others))
    return loss, means


def _at_least_one(number: Any) -> Any:
    """Nothing is counted where nothing is valid: 0 over 1 is the 0 that it should be."""
    return number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid tokens, detached, 0 when there are none: for metrics."""
    return select(x.detach(), mask).sum() / mask.sum().clamp(min=1)
