"""PPO's clipped surrogate.

Sources: Schulman et al., Proximal Policy Optimization Algorithms, eq. 7 (https://arxiv.org/abs/1707.06347);
two clip ratios ("clip higher"): Yu et al., DAPO, eq. 10 (https://arxiv.org/abs/2503.14476); dual clip: Ye et al.,
Mastering Complex Control in MOBA Games, eq. 5 (https://arxiv.org/abs/1912.09729).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.aggregation import masked_mean
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.policy_losses.ratio import bounded_exp, clipped_surrogate, finish, read


@register_policy_loss("ppo_clip", source="https://arxiv.org/abs/1707.06347 eq. 7")
def ppo_clip(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_c: float | None = None,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Pessimistic importance-sampled policy gradient.

    .. math::
        \rho = e^{\log\pi - \log\pi_{old}}, \qquad
        L = \max(-\rho A, \; -\mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A)

    and with dual clip :math:`L = \min(L, -cA)` where A < 0. The log-ratio is clamped to [-20, 20], as in verl, so
    that no ratio overflows. Unlike verl's default of 3, ``clip_ratio_c`` is None: PPO has no dual clip.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        clip_ratio_low: :math:`\epsilon_{low}`, in [0, 1].
        clip_ratio_high: :math:`\epsilon_{high}`, at least 0.
        clip_ratio_c: The dual clip's c, at least 1, or None for none.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``pg_clipfrac`` and ``pg_clipfrac_lower`` (shares of valid tokens whose
        loss the clip and the dual clip replaced), ``ppo_kl`` (mean of the log-ratio's negative, k1, nats).

    Raises:
        InputError: a clip ratio out of range, an unknown ``loss_agg_mode``.
    """
    check_range("ppo_clip", high=1.0, clip_ratio_low=clip_ratio_low)
    check_range("ppo_clip", clip_ratio_high=clip_ratio_high)
    check_range("ppo_clip", low=1.0, clip_ratio_c=clip_ratio_c)
    mask, _, log_ratio, gain = read(old_log_prob, log_prob, advantages, response_mask)
    losses, clipped = clipped_surrogate(gain, bounded_exp(log_ratio), clip_ratio_low, clip_ratio_high)
    ppo_kl = masked_mean(-log_ratio, mask)
    metrics = {
        "pg_clipfrac": masked_mean(clipped.float(), mask),
        "pg_clipfrac_lower": torch.zeros_like(ppo_kl),
        "ppo_kl": ppo_kl,
    }
    if clip_ratio_c is not None:
        bound = torch.where(gain < 0, -gain * clip_ratio_c, torch.inf)
        metrics["pg_clipfrac_lower"] = masked_mean((losses > bound).float(), mask)
        losses = torch.minimum(losses, bound)
    return finish(losses, mask, loss_agg_mode, rollout_is_weights, global_batch_info), metrics
