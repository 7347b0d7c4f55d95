"""What the value losses share: from a block's losses and slopes to the loss of the batch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators.aggregation import aggregate_rows
from rl_estimators.backends.losses import Term, row_sums

__all__ = ["reduce"]


def reduce(
    term: Term,
    vpreds: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    global_batch_info: Mapping[str, Any] | None,
    *others: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """A value loss, 0-dim and differentiable in ``vpreds``, and the means over valid tokens of what else it gives.

    Args:
        term: Gets a block's mask, ``vpreds`` and ``others``.
        vpreds: ``(B, T)``, as all tensors; in training.
        response_mask: In any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.
        *others: What the term needs beside them.
    """
    sums, number, *more = row_sums(term, vpreds, response_mask, *(x.detach() for x in others))
    tokens = number.sum().clamp(min=1)
    loss = aggregate_rows(sums, number, response_mask.shape[-1], loss_agg_mode, global_batch_info)
    return loss, [x.sum() / tokens for x in more]
