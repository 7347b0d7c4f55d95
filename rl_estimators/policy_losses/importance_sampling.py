"""The importance-sampled surrogate without a clip.

Sources: Schulman et al., Trust Region Policy Optimization, eq. 14 (https://arxiv.org/abs/1502.05477), called
:math:`L^{CPI}` in Schulman et al., Proximal Policy Optimization Algorithms, eq. 6
(https://arxiv.org/abs/1707.06347).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.calls import register_policy_loss
from rl_estimators.policy_losses.ratio import bounded_exp, reduce, weighed, where_bounded


@register_policy_loss("importance_sampling", source="https://arxiv.org/abs/1707.06347 eq. 6")
def importance_sampling(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Advantage times the token's probability ratio.

    .. math:: L = -\rho A, \qquad \rho = e^{\log\pi - \log\pi_{old}}

    On the batch's own policy, where :math:`\rho = 1`, it has the gradient of `reinforce`. As in `ppo_clip`
    the log-ratio is clamped to [-20, 20]. verl has no loss of this kind; its ``vanilla`` with clip ratios out
    of reach agrees. The mean is over time steps in the paper: ``token-mean``, the default.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``ppo_kl`` (mean of the log-ratio's negative, k1, nats) and
        ``ratio_mean``.

    Raises:
        InputError: an unknown ``loss_agg_mode``.
    """
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (ratio, log_ratio, one) = reduce(
        _term, *inputs, loss_agg_mode, rollout_is_weights, global_batch_info
    )
    return loss, {"ppo_kl": -log_ratio, "ratio_mean": ratio + one}


def _term(
    valid: Tensor, log_prob: Tensor, old_log_prob: Tensor, gain: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, ...]:
    """A block's losses; their slopes, the same where the ratio is free to move; ratio - 1, log-ratio and 1."""
    log_ratio = torch.sub(log_prob, old_log_prob, out=old_log_prob)
    ratio = bounded_exp(log_ratio)
    losses = gain.mul_(ratio).neg_()
    slopes = where_bounded(losses, log_ratio)
    return *weighed(losses, slopes, weights), ratio.sub_(1), log_ratio, valid
