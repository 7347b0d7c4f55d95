"""SAPO: a soft gate on the ratio in the place of a clip.

Source: Gao et al., Soft Adaptive Policy Optimization, section 3, eq. 5 and 6 (https://arxiv.org/abs/2511.20347).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends.torch_blocks import compare
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.policy_losses.ratio import bounded_exp, reduce, weighed, where_bounded


@register_policy_loss("sapo", source="https://arxiv.org/abs/2511.20347 eq. 5-6")
def sapo(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Advantage times a sigmoid of the probability ratio.

    .. math::
        L = -\frac4\tau \, \sigma(\tau (\rho - 1)) A, \qquad
        \tau = \begin{cases} \tau_{pos} & A > 0 \\ \tau_{neg} & \text{otherwise} \end{cases}

    with :math:`\rho = e^{\log\pi - \log\pi_{old}}`. The gradient by :math:`\rho` is -A at 1, as without a
    gate, and dies away on both sides, the faster the larger :math:`\tau`. As in `ppo_clip` the log-ratio is
    clamped to [-20, 20].

    The paper takes the mean over each response's tokens and then over responses: the default
    ``loss_agg_mode``. Every mode is taken as asked; verl's ``sapo`` computes ``seq-mean-token-mean`` whatever
    is asked. verl's ``actor.loss_agg_mode`` says ``token-mean`` unless told otherwise, and so do our trainers in TRL.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        tau_pos: :math:`\tau_{pos}`, above 0; the paper's 1.
        tau_neg: :math:`\tau_{neg}`, above 0; the paper's 1.05.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``ppo_kl`` (mean of the log-ratio's negative, k1, nats) and
        ``gate_slope`` (mean over valid tokens of the gate's derivative, 1 at a ratio of 1 and 0 far from it).

    Raises:
        InputError: a temperature below 1e-6, an unknown ``loss_agg_mode``.
    """
    check_range("sapo", low=1e-6, tau_pos=tau_pos, tau_neg=tau_neg)
    term = partial(_term, tau_pos=tau_pos, tau_neg=tau_neg)
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (gate, one, log_ratio) = reduce(term, *inputs, loss_agg_mode, rollout_is_weights, global_batch_info)
    return loss, {"ppo_kl": -log_ratio, "gate_slope": gate + one}


def _term(
    valid: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    gain: Tensor,
    weights: Tensor | None = None,
    *,
    tau_pos: float,
    tau_neg: float,
) -> tuple[Tensor, ...]:
    """A block's losses; their slopes -4 S (1 - S) ratio A; the gate's slope 4 S (1 - S), less 1; 1; the log-ratio."""
    log_ratio = torch.sub(log_prob, old_log_prob, out=old_log_prob)
    ratio = bounded_exp(log_ratio)
    good = compare("greater", gain, 0).view(torch.int8)  # 0 and 1, which as bytes become numbers sooner
    tau = good.to(gain.dtype).mul_(tau_pos - tau_neg).add_(tau_neg)
    opening = (ratio - 1).mul_(tau).sigmoid_()
    losses = torch.div(gain, tau, out=tau).mul_(opening).mul_(-4)
    gate = torch.mul(1 - opening, opening, out=log_prob).mul_(4)
    slopes = where_bounded(gain.mul_(ratio).mul_(gate).neg_(), log_ratio)
    return *weighed(losses, slopes, weights), gate.sub_(1), valid, log_ratio
