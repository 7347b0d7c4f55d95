"""GSPO: one importance ratio for a whole response.

Source: Zheng et al., Group Sequence Policy Optimization, eq. 5 and 7, and for single tokens eq. 13 and 14
(https://arxiv.org/abs/2507.18071).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.torch_blocks import keep, mask_bits
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.policy_losses.ratio import (
    bounded_exp,
    clipped_surrogate,
    held_still,
    reduce,
    row_mean,
    weighed,
)


@register_policy_loss("gspo", source="https://arxiv.org/abs/2507.18071 eq. 5")
def gspo(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    clip_ratio_low: float = 3e-4,
    clip_ratio_high: float = 4e-4,
    token_level: bool = False,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""PPO's clipped surrogate with the geometric mean of the response's token ratios in the ratio's place.

    .. math::
        s = \exp\Big(\frac1n \sum_t \log\frac{\pi_t}{\pi_{old,t}}\Big), \qquad
        L_t = \max(-s A_t, \; -\mathrm{clip}(s, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A_t)

    over the n valid tokens of the response. With ``token_level`` (GSPO-token) s becomes :math:`s_t =
    \mathrm{sg}[s] \, \pi_t / \mathrm{sg}[\pi_t]`: the same value, but token t's loss moves token t alone.
    Where all advantages of a response are equal both forms have the same gradient; where they differ, the
    sequence form gives every token the mean of what is not clipped.

    The paper averages over responses, and over the tokens of each in the token form: the default
    ``loss_agg_mode`` ``seq-mean-token-mean`` is both. Every mode is taken as asked; others weigh a response
    by its length. verl's ``actor.loss_agg_mode`` says ``token-mean`` unless told otherwise, and so do our trainers in
    TRL; verl's actor brings its own clip ratios of 0.2 besides, some 600 times the paper's: set all three.

    verl's ``gspo`` is the token form only, and bounds s by e^10 where this bounds it to e^-20 ... e^20.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        clip_ratio_low: :math:`\epsilon_{low}`, in [0, 1]; the paper's 3e-4.
        clip_ratio_high: :math:`\epsilon_{high}`, at least 0; the paper's 4e-4.
        token_level: GSPO-token.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``pg_clipfrac`` (share of valid tokens whose loss the clip replaced) and
        ``ppo_kl`` (mean of the log-ratio's negative, k1, nats).

    Raises:
        InputError: a clip ratio out of range, an unknown ``loss_agg_mode``.
    """
    check_range("gspo", high=1.0, clip_ratio_low=clip_ratio_low)
    check_range("gspo", clip_ratio_high=clip_ratio_high)
    term = partial(_term, low=clip_ratio_low, high=clip_ratio_high, token_level=token_level)
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (clipped, log_ratio) = reduce(term, *inputs, loss_agg_mode, rollout_is_weights, global_batch_info)
    return loss, {"pg_clipfrac": clipped, "ppo_kl": -log_ratio}


def _term(
    valid: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    gain: Tensor,
    weights: Tensor | None = None,
    *,
    low: float,
    high: float,
    token_level: bool,
) -> tuple[Tensor, ...]:
    """A block's losses; their slopes by log s, -s A where the clip is not in force and else 0; where it is; log-ratios.

    Token t's loss moves token t alone or, through the mean that log s is, all of them by a share of 1 / n.
    """
    log_ratio = torch.sub(log_prob, old_log_prob, out=old_log_prob)
    log_s = row_mean(log_ratio, valid)
    plain, smaller, clipped = clipped_surrogate(gain, bounded_exp(log_s), low, high)
    held = clipped | held_still(log_s)
    slopes = keep(plain, mask_bits(~held, plain.dtype)).neg_()
    losses, slopes = weighed(smaller.neg_(), slopes, weights)
    if not token_level:
        slopes = keep(row_mean(slopes, valid), mask_bits(valid, slopes.dtype))
    return losses, slopes, clipped, log_ratio
