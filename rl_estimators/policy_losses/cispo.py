"""CISPO: the importance weight is clipped, the token's gradient never dropped.

Source: MiniMax, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, sec. 3.1, eq. 4
and 5 (https://arxiv.org/abs/2506.13585).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.torch_blocks import compare
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.policy_losses.ratio import bounded_exp, reduce, weighed


@register_policy_loss("cispo", source="https://arxiv.org/abs/2506.13585 eq. 4")
def cispo(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    clip_ratio_low: float = 1.0,
    clip_ratio_high: float = 0.2,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""REINFORCE weighted by a clipped probability ratio that carries no gradient.

    .. math::
        L = -\mathrm{sg}[\mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high})] \, A \log\pi, \qquad
        \rho = e^{\log\pi - \log\pi_{old}}

    The paper's lower bound is out of reach, and so is the default here, 1 - 1 = 0; verl's ``cispo`` takes the
    actor's ``clip_ratio_low``, 0.2. For the upper bound the paper tells no number; 0.2 is verl's. Under TRL's
    ``loss_type="cispo"``, ``epsilon_high`` is the bound itself, 1 + :math:`\epsilon_{high}` here. The paper's
    mean is over all tokens of the group, ``token-mean``. As in `ppo_clip` the log-ratio is clamped to [-20,
    20].

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        clip_ratio_low: :math:`\epsilon_{low}`, in [0, 1]; 1 is no lower bound.
        clip_ratio_high: :math:`\epsilon_{high}`, at least 0.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``pg_clipfrac`` (share of valid tokens whose weight the clip changed)
        and ``ppo_kl`` (mean of the log-ratio's negative, k1, nats).

    Raises:
        InputError: a clip ratio out of range, an unknown ``loss_agg_mode``.
    """
    check_range("cispo", high=1.0, clip_ratio_low=clip_ratio_low)
    check_range("cispo", clip_ratio_high=clip_ratio_high)
    term = partial(_term, low=1 - clip_ratio_low, high=1 + clip_ratio_high)
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
) -> tuple[Tensor, ...]:
    """A block's losses, their slopes -weight A, where the weight was clipped, and the log-ratio."""
    log_ratio = torch.sub(log_prob, old_log_prob, out=old_log_prob)
    ratio = bounded_exp(log_ratio)
    weight = ratio.clamp(low, high)
    clipped = compare("not_equal", weight, ratio)
    slopes = weight.mul_(gain).neg_()
    return *weighed(log_prob.mul_(slopes), slopes, weights), clipped, log_ratio
