"""KL-Cov: the tokens of highest covariance pay for leaving the old policy.

Source: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, section 4,
eq. 14 (https://arxiv.org/abs/2505.22617v1).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_estimators.backends import work_dtype
from rl_estimators.backends.torch_blocks import compare, keep, mask_bits
from rl_estimators.calls import register_policy_loss
from rl_estimators.fields import check_range
from rl_estimators.masked import as_mask
from rl_estimators.policy_losses.covariance import covariances, share_of, top
from rl_estimators.policy_losses.ratio import bounded_exp, reduce, weighed, where_bounded


@register_policy_loss("kl_cov", source="https://arxiv.org/abs/2505.22617v1 eq. 14")
def kl_cov(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    kl_cov_ratio: float = 2e-4,
    ppo_kl_coef: float = 1.0,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The importance-sampled surrogate, and a penalty for a few tokens whose update would cost most entropy.

    .. math::
        c_t = (\log\pi_t - \overline{\log\pi}) (A_t - \bar A), \qquad
        L_t = -\rho_t A_t + \begin{cases} \beta \, |\log\rho_t| & t \in I \\ 0 & \text{otherwise} \end{cases}

    I holds the k N tokens with the largest :math:`c_t`, N being the number of valid tokens; of equals the
    earlier. There is no clip.

    The paper writes the penalty as the KL divergence from the old policy to the one in training; the authors'
    code, verl's ``kl_cov`` and this take :math:`|\log\rho_t|` for it, whose gradient is 0 where the two
    policies agree. Like theirs, this takes at least one token. As in `ppo_clip` the log-ratio is clamped to
    [-20, 20] in :math:`\rho`, which verl does not do here.

    The mean is over the tokens of the batch, ``token-mean``, as in verl's recipe of the authors. Means, N and ranks
    are over the batch at hand, so micro-batches choose other tokens than the whole batch
    would, and at least one each.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        kl_cov_ratio: k, in [0, 1]; the paper's 2e-4 for its 32B model (2e-3 for 7B). 0: no token pays; verl
            refuses it.
        ppo_kl_coef: :math:`\beta`, at least 0, in units of advantage per nat; the paper's 1. verl's
            configuration has 0.1.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``cov_frac`` (share of valid tokens in I) and ``ppo_kl`` (mean of the
        log-ratio's negative, k1, nats; verl's ``kl_cov`` reports the mean of its absolute value under this
        name).

    Raises:
        InputError: an option out of range, an unknown ``loss_agg_mode``.
    """
    check_range("kl_cov", high=1.0, kl_cov_ratio=kl_cov_ratio)
    check_range("kl_cov", ppo_kl_coef=ppo_kl_coef)
    mask = as_mask(response_mask)
    score = torch.full(mask.shape, -torch.inf, dtype=work_dtype(log_prob, advantages), device=mask.device)
    for some, found in covariances(log_prob, advantages, mask):
        score[some] = found.masked_fill_(~mask[some], -torch.inf)
    chosen = top(score.flatten(), share_of(mask, kl_cov_ratio)).view_as(mask)
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (cov_frac, log_ratio) = reduce(
        partial(_term, coef=ppo_kl_coef),
        *inputs,
        loss_agg_mode,
        rollout_is_weights,
        global_batch_info,
        chosen,
    )
    return loss, {"cov_frac": cov_frac, "ppo_kl": -log_ratio}


def _term(
    valid: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    gain: Tensor,
    chosen: Tensor,
    weights: Tensor | None = None,
    *,
    coef: float,
) -> tuple[Tensor, ...]:
    """A block's losses; their slopes, -A ratio and the penalty's; which tokens pay it, as 0 and 1; the log-ratio."""
    log_ratio = torch.sub(log_prob, old_log_prob, out=old_log_prob)
    losses = gain.mul_(bounded_exp(log_ratio)).neg_()
    slopes = where_bounded(losses, log_ratio).addcmul_(chosen, log_ratio.sign(), value=coef)
    # by selection: a log-ratio may be infinite where nobody pays
    paid = keep(log_ratio.abs(), mask_bits(compare("greater", chosen, 0), chosen.dtype))
    losses = losses.add_(paid, alpha=coef)
    return *weighed(losses, slopes, weights), chosen, log_ratio
