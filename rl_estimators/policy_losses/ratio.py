"""What the policy losses share: the ratio, the clip, the step from a block's terms to a scalar.

A loss is a term per token, written down with its slope; :mod:`rl_estimators.backends.losses` runs it over the batch, cut
to the valid tokens by selection before any arithmetic, so that NaN at a masked position reaches neither the loss nor
the gradient. A loss can be differentiated once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.aggregation import aggregate_terms
from rl_estimators.backends.losses import Term
from rl_estimators.backends.torch_blocks import compare, keep, mask_bits

__all__ = [
    "MAX_LOG_RATIO",
    "bounded_exp",
    "clipped_surrogate",
    "held_still",
    "reduce",
    "row_mean",
    "weighed",
    "where_bounded",
]

MAX_LOG_RATIO = 20.0


def reduce(
    term: Term,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    rollout_is_weights: Tensor | None,
    global_batch_info: Mapping[str, Any] | None,
    *others: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """A policy loss, 0-dim and differentiable in ``log_prob``, and the means over valid tokens of what else it gives.

    Args:
        term: Gets a block's mask, ``log_prob``, ``old_log_prob``, ``advantages``, ``others`` and, where there are any,
            ``weights=``.
        old_log_prob: ``(B, T)``, as all tensors.
        log_prob: In training.
        advantages: Without a gradient.
        response_mask: In any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        rollout_is_weights: Factors for a policy that sampled differently, or None.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.
        *others: What the term needs beside them.
    """
    inputs = (old_log_prob, advantages, *others)
    run = term
    if rollout_is_weights is not None:
        inputs = (*inputs, rollout_is_weights)

        def run(valid: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            return term(valid, *rest[:-1], weights=rest[-1])

    return aggregate_terms(run, log_prob, response_mask, loss_agg_mode, global_batch_info, *inputs)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """A ratio that cannot overflow: its logarithm is first clamped to [-20, 20], as in verl's `vanilla`."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp_()


def held_still(log_ratio: Tensor) -> Tensor:
    """Bool, where :func:`bounded_exp` holds the ratio still."""
    return compare("greater", log_ratio.abs(), MAX_LOG_RATIO)


def where_bounded(slopes: Tensor, log_ratio: Tensor) -> Tensor:
    """Slopes by a logarithm, 0 where :func:`bounded_exp` holds the ratio still."""
    return keep(slopes, mask_bits(compare("less_equal", log_ratio.abs(), MAX_LOG_RATIO), slopes.dtype))


def weighed(losses: Tensor, slopes: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both times the weights of the rollout, if there are any."""
    return (losses, slopes) if weights is None else (losses * weights, slopes * weights)


def clipped_surrogate(gain: Tensor, ratio: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """A ratio, the smaller of it and A clip(ratio, 1 - low, 1 + high), and where that is the smaller.

    ``ratio`` is ``(R, T)`` and used up, or ``(R, 1)``.
    """
    bounded = ratio.clamp(1 - low, 1 + high)
    if ratio.shape == gain.shape:
        plain, bounded = ratio.mul_(gain), bounded.mul_(gain)
    else:
        plain, bounded = ratio * gain, bounded * gain
    clipped = compare("less", bounded, plain)
    return plain, torch.minimum(plain, bounded, out=bounded), clipped


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """``(B, 1)`` mean over each response's valid tokens; 0 where it has none."""
    number = mask.sum(-1, keepdim=True, dtype=torch.int32).clamp(min=1)
    return keep(x, mask_bits(mask, x.dtype)).sum(-1, keepdim=True) / number
