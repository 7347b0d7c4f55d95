"""What the policy losses share: the log-ratio of valid tokens, means over a response, the step to a scalar.

Everything is cut to the valid tokens by selection before any arithmetic, so that NaN at a masked position
reaches neither the loss nor the gradient.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_estimators.aggregation import aggregate
from rl_estimators.masked import as_mask, select

__all__ = ["MAX_LOG_RATIO", "Tokens", "bounded_exp", "clipped_surrogate", "finish", "read", "row_mean"]

MAX_LOG_RATIO = 20.0


class Tokens(NamedTuple):
    """A policy loss's inputs, 0 on masked positions, in fp32 (fp64 if an input is).

    Attributes:
        mask: ``(B, T)`` bool.
        log_prob: ``(B, T)`` in training; carries the gradient.
        log_ratio: ``(B, T)`` log-probability in training minus the old one; carries the gradient.
        gain: ``(B, T)`` advantages, without a gradient.
    """

    mask: Tensor
    log_prob: Tensor
    log_ratio: Tensor
    gain: Tensor


def read(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Tokens:
    """Cut a policy loss's inputs to their valid tokens; only ``log_prob`` keeps its gradient."""
    mask = as_mask(response_mask)
    new = select(log_prob, mask, old_log_prob)
    log_ratio = new - select(old_log_prob.detach(), mask, log_prob)
    return Tokens(mask, new, log_ratio, select(advantages.detach(), mask, log_ratio))


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """A ratio that cannot overflow: its logarithm is first clamped to [-20, 20], as in verl's `vanilla`."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_surrogate(gain: Tensor, ratio: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The larger of -A ratio and -A clip(ratio, 1 - low, 1 + high), and where the second is the larger."""
    plain, clipped = -gain * ratio, -gain * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """``(B, 1)`` mean over each response's valid tokens; 0 where it has none."""
    return torch.where(mask, x, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


def finish(
    losses: Tensor,
    mask: Tensor,
    loss_agg_mode: str,
    rollout_is_weights: Tensor | None,
    global_batch_info: Mapping[str, Any] | None,
) -> Tensor:
    """Weigh the tokens for a policy that sampled differently, and aggregate them to a 0-dim tensor."""
    if rollout_is_weights is not None:
        losses = losses * select(rollout_is_weights.detach(), mask, losses)
    return aggregate(losses, mask, loss_agg_mode, global_batch_info)
