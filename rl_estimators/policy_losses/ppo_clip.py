"""PPO's clipped surrogate.

Sources: Schulman et al., Proximal Policy Optimization Algorithms, eq. 7 (https://arxiv.org/abs/1707.06347);
two clip ratios ("clip higher"): Yu et al., DAPO, eq. 10 (https://arxiv.org/abs/2503.14476); dual clip: Ye et al.,
Mastering Complex Control in MOBA Games, eq. 5 (https://arxiv.org/abs/1912.09729).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.aggregation import aggregate, masked_mean
from rl_estimators.backends.torch_blocks import compare, keep, mask_bits
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.masked import as_mask, select
from rl_estimators.policy_losses.ratio import bounded_exp, clipped_surrogate, held_still, reduce, weighed


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
    fused: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Pessimistic importance-sampled policy gradient.

    .. math::
        \rho = e^{\log\pi - \log\pi_{old}}, \qquad
        L = \max(-\rho A, \; -\mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A)

    and with dual clip :math:`L = \min(L, -cA)` where A < 0. The log-ratio is clamped to [-20, 20], as in verl, so
    that no ratio overflows; the metric ``ppo_kl`` has it as it is, where verl clamps that, too. Unlike verl's default
    of 3, ``clip_ratio_c`` is None: PPO has no dual clip.
    PPO's mean is over time steps, DAPO's over the tokens of the group: ``token-mean``, the default. GRPO's (DeepSeekMath,
    eq. 3) is over each response's tokens and then over responses: ``seq-mean-token-mean``; Dr. GRPO's sums tokens
    and divides by a constant length: ``seq-mean-token-sum-norm``.

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
        fused: Compute loss and gradient in one reading of the batch, see :mod:`rl_estimators.backends.losses`: the
            same numbers to rounding in less time and memory, but not twice differentiable.

    Returns:
        The loss, 0-dim, and metrics: ``pg_clipfrac`` and ``pg_clipfrac_lower`` (shares of valid tokens whose
        loss the clip and the dual clip replaced), ``ppo_kl`` (mean of the log-ratio's negative, k1, nats).

    Raises:
        InputError: a clip ratio out of range, an unknown ``loss_agg_mode``.
    """
    check_range("ppo_clip", high=1.0, clip_ratio_low=clip_ratio_low)
    check_range("ppo_clip", clip_ratio_high=clip_ratio_high)
    check_range("ppo_clip", low=1.0, clip_ratio_c=clip_ratio_c)
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    more = (loss_agg_mode, rollout_is_weights, global_batch_info)
    low, high, bound = clip_ratio_low, clip_ratio_high, clip_ratio_c
    if fused:
        loss, means = reduce(partial(_term, low=low, high=high, bound=bound), *inputs, *more)
    else:
        loss, means = _by_autograd(*inputs, *more, low=low, high=high, bound=bound)
    clipped, lower, log_ratio = means
    return loss, {"pg_clipfrac": clipped, "pg_clipfrac_lower": lower, "ppo_kl": -log_ratio}


def _term(
    valid: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    gain: Tensor,
    weights: Tensor | None = None,
    *,
    low: float,
    high: float,
    bound: float | None,
) -> tuple[Tensor, ...]:
    """A block's losses; their slopes, -A ratio where no clip is in force and else 0; and the metrics' numbers."""
    log_ratio = log_prob.sub_(old_log_prob)
    plain, smaller, clipped = clipped_surrogate(gain, bounded_exp(log_ratio), low, high)
    losses, still = smaller.neg_(), clipped | held_still(log_ratio)
    lower = torch.zeros_like(clipped)
    if bound is not None:
        most = gain.clamp(max=0).mul_(-bound)  # 0 where A > 0, and there no loss is larger
        lower = compare("greater", losses, most)
        losses, still = torch.minimum(losses, most), still | lower
    slopes = keep(plain.neg_(), mask_bits(~still, plain.dtype))
    return *weighed(losses, slopes, weights), clipped, lower, log_ratio


def _by_autograd(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    weights: Tensor | None,
    global_batch_info: Mapping[str, Any] | None,
    *,
    low: float,
    high: float,
    bound: float | None,
) -> tuple[Tensor, list[Tensor]]:
    """The same as the formula says, in some thirty tensors of the batch's size."""
    mask = as_mask(response_mask)
    log_ratio = select(log_prob, mask, old_log_prob) - select(old_log_prob.detach(), mask, log_prob)
    gain, ratio = select(advantages.detach(), mask, log_ratio), bounded_exp(log_ratio)
    plain, bounded = -gain * ratio, -gain * ratio.clamp(1 - low, 1 + high)
    # by where: of two that are equal minimum and maximum would hand half of the gradient to each
    clipped, lower = bounded > plain, torch.zeros_like(mask)
    losses = torch.where(clipped, bounded, plain)
    if bound is not None:
        most = torch.where(gain < 0, -gain * bound, torch.inf)
        lower = losses > most
        losses = torch.where(lower, most, losses)
    if weights is not None:
        losses = losses * select(weights.detach(), mask, losses)
    means = [masked_mean(x.to(gain.dtype), mask) for x in (clipped, lower, log_ratio)]
    return aggregate(losses, mask, loss_agg_mode, global_batch_info), means
