"""MaxRL: the group's mean as baseline and as scale, which climbs the likelihood of success.

Source: Tajwar, Zeng et al., Maximum Likelihood Reinforcement Learning, section 4.3, the estimator with its control variate;
its expectation: appendix D, theorem 5 (https://arxiv.org/abs/2602.02710v3).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.errors import InputError
from rl_estimators.registry import Estimate


@register_adv_est("maxrl", source="https://arxiv.org/abs/2602.02710v3 section 4.3")
def maxrl(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
) -> Estimate:
    r"""Centre scores within their group and divide by the group's mean.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = \frac{s_b - \bar s_{g(b)}}{\bar s_{g(b)}}

    With scores of 0 and 1 the mean is the share of responses that succeed. With p the chance to succeed, the average
    over a group of n is in expectation :math:`\sum_{k=0}^{n-2} (1 - p)^k \, \nabla p`, which tends to
    :math:`\nabla p / p = \nabla \log p` as n grows, where ``rloo`` has :math:`\nabla p`: what is rarely solved
    weighs more. A group without success gets 0.

    The paper has scores of 0 and 1. The equation is taken over to any scores of at least 0; a negative score is
    refused, as a mean near or below 0 would blow up or turn around the advantages.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters, at least 0.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.

    Returns:
        Advantages ``(B, T)`` in [-1, n - 1], and the same tensor as returns: there is no critic to train.

    Raises:
        InputError: a score is negative.
    """
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    rounding = 1e-6 * torch.where(mask, token_level_rewards, 0).to(scores.dtype).abs().sum(-1)
    if (scores < -rounding).any():
        lowest = scores.amin().item()
        raise InputError(
            f"maxrl: a response scores {lowest:g}, expected at least 0, for advantages are divided by the group's "
            "mean score; shift the rewards, and put a KL penalty into the loss rather than the reward"
        )
    scores = scores.clamp(min=0)
    size = masked.group_sum(rows.to(scores.dtype), ids)
    mean = masked.group_sum(scores, ids) / size
    relative = torch.where(mean > 0, masked.group_centred(scores, ids, rows) / mean, 0)
    advantages = masked.to_tokens(relative, mask)
    return Estimate(advantages, advantages)
