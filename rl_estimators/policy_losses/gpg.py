"""GPG: the group policy gradient's loss.

Source: Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, section 2
(https://arxiv.org/abs/2504.02546v3).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators.calls import register_policy_loss
from rl_estimators.policy_losses.reinforce import reinforce


@register_policy_loss("gpg", source="https://arxiv.org/abs/2504.02546v3 section 2")
def gpg(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Advantage-weighted log-likelihood as a mean over tokens, :math:`L = -A \log\pi`.

    `reinforce` under the name by which verl and the paper know it, with the paper's mean over all tokens of
    the batch, ``token-mean``, as the default. What else makes GPG, how its advantages are centred and scaled,
    is the advantage estimator's part.

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
    return reinforce(
        old_log_prob,
        log_prob,
        advantages,
        response_mask,
        loss_agg_mode,
        rollout_is_weights=rollout_is_weights,
        global_batch_info=global_batch_info,
    )
