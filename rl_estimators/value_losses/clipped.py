"""PPO's clipped value loss.

Source: the PPO implementation of OpenAI baselines, ``ppo2/model.py``; described as detail 9 of Huang et al., The 37
Implementation Details of Proximal Policy Optimization (ICLR Blog Track 2022). The PPO paper does not have it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.aggregation import aggregate_terms
from rl_estimators.backends.torch_blocks import compare, keep, mask_bits
from rl_estimators.calls import register_value_loss
from rl_estimators.fields import check_range


@register_value_loss("clipped", source="OpenAI baselines, ppo2/model.py")
def clipped(
    vpreds: Tensor,
    values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    cliprange_value: float = 0.5,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Half the larger of two squared errors, one with the value kept near where it was.

    .. math::
        L = \tfrac12 \max\{(V - R)^2, \; (\mathrm{clip}(V, V_{old} - c, V_{old} + c) - R)^2\}

    Once a value has moved more than c towards its target the gradient is 0.

    Args:
        vpreds: ``(B, T)`` values in training, in units of reward.
        values: ``(B, T)`` values when the rollouts were made.
        returns: ``(B, T)`` targets.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        cliprange_value: c, at least 0, in units of reward.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``vf_clipfrac`` (share of valid tokens whose loss the clip replaced) and
        ``vpred_mean``.

    Raises:
        InputError: ``cliprange_value`` below 0, an unknown ``loss_agg_mode``.
    """
    check_range("clipped", cliprange_value=cliprange_value)
    term = partial(_term, reach=cliprange_value)
    loss, (clipfrac, mean) = aggregate_terms(
        term, vpreds, response_mask, loss_agg_mode, global_batch_info, values, returns
    )
    return loss, {"vf_clipfrac": clipfrac, "vpred_mean": mean}


def _term(valid: Tensor, new: Tensor, old: Tensor, target: Tensor, *, reach: float) -> tuple[Tensor, ...]:
    """A block's losses; their slopes, V - R or, where the clip is in force, 0; where it is; and the values."""
    error = new - target
    near = torch.clamp(new, old - reach, old + reach).sub_(target)
    plain, bounded = error.square(), near.square_()
    clips = compare("greater", bounded, plain)
    losses = torch.maximum(plain, bounded).mul_(0.5)
    return losses, keep(error, mask_bits(~clips, error.dtype)), clips, new
