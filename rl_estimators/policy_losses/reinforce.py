"""REINFORCE: the policy gradient itself, without a ratio and without a clip.

Sources: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning,
sec. 5 (https://doi.org/10.1007/BF00992696); as a loss: Schulman et al., Proximal Policy Optimization
Algorithms, eq. 2 (https://arxiv.org/abs/1707.06347).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators.calls import register_policy_loss
from rl_estimators.policy_losses.ratio import reduce, weighed


@register_policy_loss("reinforce", source="https://doi.org/10.1007/BF00992696 sec. 5")
def reinforce(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "seq-mean-token-sum",
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Advantage-weighted log-likelihood, :math:`L = -A \log\pi`.

    Its gradient is right for tokens that the policy in training wrote itself: after the first update on a
    batch it is off-policy, and nothing here corrects that (see `importance_sampling`). The value says nothing
    about progress; its gradient does. The default ``loss_agg_mode`` is that of verl's
    ``compute_policy_loss_reinforce``: a response's log-likelihood is a sum, and its mean over responses
    estimates the expected return's gradient. verl's ``actor.loss_agg_mode`` says ``token-mean`` unless told
    otherwise, and so do our trainers in TRL.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update; for the metric only.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and the metric ``ppo_kl`` (mean of the log-ratio's negative, k1, nats).

    Raises:
        InputError: an unknown ``loss_agg_mode``.
    """
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (ppo_kl,) = reduce(_term, *inputs, loss_agg_mode, rollout_is_weights, global_batch_info)
    return loss, {"ppo_kl": ppo_kl}


def _term(
    valid: Tensor, log_prob: Tensor, old_log_prob: Tensor, gain: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, ...]:
    """A block's losses, their slopes -A, and the log-ratio's negative."""
    minus_log_ratio, slopes = old_log_prob.sub_(log_prob), gain.neg_()
    return *weighed(log_prob.mul_(slopes), slopes, weights), minus_log_ratio
