"""GMPO: the geometric mean of token ratios, each clipped before the mean is taken.

Source: Zhao et al., Geometric-Mean Policy Optimization, section 3, eq. 3 and 4 (https://arxiv.org/abs/2507.20673v3).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.torch_blocks import compare, keep, mask_bits
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.policy_losses.ratio import bounded_exp, reduce, row_mean, where_bounded


@register_policy_loss("gmpo", source="https://arxiv.org/abs/2507.20673v3 eq. 3-4")
def gmpo(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    clip_ratio_low: float = 0.4,
    clip_ratio_high: float = 0.4,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Advantage of the response times the geometric mean of its pessimistically clipped token ratios.

    .. math::
        L = -A \exp\Big(\frac1n \sum_t \ell_t\Big), \qquad
        \ell_t = \begin{cases}
            \min(\log\rho_t, \epsilon_{high}) & A > 0 \\
            \max(\log\rho_t, -\epsilon_{low}) & A < 0
        \end{cases}

    over the n valid tokens of the response, which is the paper's

    .. math::
        -\mathrm{sgn}(A) \Big(\prod_t |\min(\rho_t A, \mathrm{clip}(\rho_t) A)|\Big)^{1/n}

    for ratios clipped to :math:`[e^{-\epsilon_{low}}, e^{\epsilon_{high}}]`: the clip ratios are distances of
    logarithms, not of ratios.

    A is the response's advantage: where its tokens' differ, which the paper does not foresee, their mean over
    valid tokens. verl's ``geo_mean`` takes the same mean but lets each token's own sign choose the side of
    its clip. verl's also ignores ``loss_agg_mode`` and ``global_batch_info`` and divides by all rows, those
    without valid tokens too, so that its micro-batches do not add up to the batch. Here L stands on each
    valid token and the mode applies; the default ``seq-mean-token-mean`` is the paper's mean over responses.
    verl's ``actor.loss_agg_mode`` says ``token-mean`` unless told otherwise, and so do our trainers in TRL; verl's
    actor brings its own clip ratios of 0.2 besides: set all three. verl's ``pg_clipfrac`` counts a token that is outside on
    either side, this one only where the clip is in force. The mean of the logarithms is clamped to [-20, 20].

    Weights of the rollout enter as the ratios do, by their geometric mean (as in verl, without its 1e-10: a
    weight of 0 takes the response out).

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``, the same on all valid tokens of a response.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        clip_ratio_low: :math:`\epsilon_{low}` in nats, at least 0; the paper's 0.4.
        clip_ratio_high: :math:`\epsilon_{high}` in nats, at least 0; the paper's 0.4.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``pg_clipfrac`` and ``pg_clipfrac_lower`` (shares of valid tokens
        clipped at the upper bound, where A > 0, and at the lower, where A < 0), ``ppo_kl`` (mean of the
        log-ratio's negative, k1, nats).

    Raises:
        InputError: a clip ratio out of range, an unknown ``loss_agg_mode``.
    """
    check_range("gmpo", clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high)
    term = partial(_term, low=clip_ratio_low, high=clip_ratio_high)
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (above, below, log_ratio) = reduce(
        term, *inputs, loss_agg_mode, rollout_is_weights, global_batch_info
    )
    return loss, {"pg_clipfrac": above, "pg_clipfrac_lower": below, "ppo_kl": -log_ratio}


def _term(
    valid: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    gain: Tensor,
    weights: Tensor | None = None,
    *,
    low: float,
    high: float,
) -> tuple[Tensor, ...]:
    """Each row's loss n L; the slopes, n L / n where no clip is in force and else 0; where which is; the log-ratio."""
    log_ratio = torch.sub(log_prob, old_log_prob, out=old_log_prob)
    gain = row_mean(gain, valid)
    above = compare("greater", log_ratio, high) & (gain > 0)
    below = compare("less", log_ratio, -low) & (gain <= 0)
    least = torch.full_like(gain, -low).masked_fill_(gain > 0, -torch.inf)
    most = torch.full_like(gain, torch.inf).masked_fill_(gain > 0, high)
    mean = row_mean(torch.minimum(torch.maximum(log_ratio, least), most), valid)
    loss = -gain * bounded_exp(mean)
    if weights is not None:
        loss = loss * row_mean(torch.where(valid, weights.log(), 0), valid).exp()
    free = valid & ~(above | below)
    slopes = keep(where_bounded(loss, mean), mask_bits(free, loss.dtype))
    number = valid.sum(-1, keepdim=True)
    return loss * number, slopes, above, below & (gain < 0), log_ratio
