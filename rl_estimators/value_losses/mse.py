"""Squared error, the critic's plain regression.

Source: Schulman et al., Proximal Policy Optimization Algorithms, eq. 9 (https://arxiv.org/abs/1707.06347).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators.aggregation import aggregate_terms
from rl_estimators.calls import register_value_loss


@register_value_loss("mse", source="https://arxiv.org/abs/1707.06347 eq. 9")
def mse(
    vpreds: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Half the squared distance to the target, :math:`L = \frac12 (V - R)^2`.

    Args:
        vpreds: ``(B, T)`` values in training, in units of reward.
        returns: ``(B, T)`` targets.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and the metric ``vpred_mean``.

    Raises:
        InputError: an unknown ``loss_agg_mode``.
    """
    loss, (mean,) = aggregate_terms(_term, vpreds, response_mask, loss_agg_mode, global_batch_info, returns)
    return loss, {"vpred_mean": mean}


def _term(valid: Tensor, new: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """A block's losses, their slopes V - R, and the values."""
    error = new - target
    return error.square().mul_(0.5), error, new
