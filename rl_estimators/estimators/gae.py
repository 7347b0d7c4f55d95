"""Generalized advantage estimation: a critic as the baseline of every token.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 3,
eq. 11-16 (https://arxiv.org/abs/1506.02438).
"""

import torch
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum, next_valid


@register_adv_est("gae", source="https://arxiv.org/abs/1506.02438 section 3")
def gae(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
) -> Estimate:
    r"""Sum a critic's one-step surprises, the later the less.

    .. math::
        \delta_k = r_k + \gamma V_{k+1} - V_k, \quad
        A_k = \sum_{j \ge k} (\gamma\lambda)^{j-k} \delta_j, \quad
        R_k = A_k + V_k

    over the valid tokens k = 1 ... n of a response, with :math:`V_{n+1} = 0`. With lambda = 0 the advantage is
    the TD error (all bias is the critic's), with lambda = 1 it is the Monte Carlo return minus V (no bias, all
    the variance). The returns R, the critic's targets, are taken before the advantages are whitened.

    Departures from verl 0.9: returns are 0 at masked positions, where verl has A + V of garbage; nothing at a
    masked position touches a valid token; whitening equal numbers gives exactly 0.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        lam: Lambda, in [0, 1].
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.

    Returns:
        Advantages and returns, ``(B, T)``. A response with a reward or value that is not finite has the
        advantage 0 and its old values as returns, where finite: it teaches neither actor nor critic.

    Raises:
        InputError: gamma or lam outside [0, 1].
    """
    check_range("gae", high=1.0, gamma=gamma, lam=lam)
    rewards, mask, _ = masked.valid(token_level_rewards, response_mask, values)
    old = masked.select(values, masked.as_mask(response_mask), rewards).nan_to_num(0.0, 0.0, 0.0)
    deltas = torch.where(mask, rewards + gamma * next_valid(old, mask) - old, 0)
    advantages = discounted_sum(deltas, mask, gamma * lam)
    returns = advantages + old
    return Estimate(masked.whiten(advantages, mask) if whiten else advantages, returns)
