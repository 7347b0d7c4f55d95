"""Generalized advantage estimation: a critic as the baseline of every token.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 3,
eq. 11-16 (https://arxiv.org/abs/1506.02438).
"""

from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum
from rl_estimators.steps import read_steps, td_errors


@register_adv_est("gae", source="https://arxiv.org/abs/1506.02438 section 3")
def gae(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Estimate:
    r"""Sum a critic's one-step surprises, the later the less.

    .. math::
        \delta_k = r_k + \gamma V_{k+1} - V_k, \quad
        A_k = \sum_{j \ge k} (\gamma\lambda)^{j-k} \delta_j, \quad
        R_k = A_k + V_k

    over the valid tokens k = 1 ... n of a response. :math:`V_{n+1}` is 0, or the bootstrap value of a truncated
    response. With lambda = 0 the advantage is the TD error (all bias is the critic's), with lambda = 1 it is the
    Monte Carlo return minus V (no bias, all the variance). The returns R, the critic's targets, are taken before
    the advantages are whitened.

    Departures from verl 0.9: returns are 0 at masked positions, where verl has A + V of garbage; nothing at a
    masked position touches a valid token; whitening equal numbers gives exactly 0.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        lam: Lambda, in [0, 1].
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages and returns, ``(B, T)``. A response with a reward or value that is not finite has the
        advantage 0 and its old values as returns, where finite: it teaches neither actor nor critic.

    Raises:
        InputError: gamma or lam outside [0, 1]; ``truncated`` without ``bootstrap_values`` or the reverse.
    """
    check_range("gae", high=1.0, gamma=gamma, lam=lam)
    steps = read_steps("gae", token_level_rewards, values, response_mask, truncated, bootstrap_values)
    advantages = discounted_sum(td_errors(steps, gamma), steps.mask, gamma * lam)
    returns = advantages + steps.values
    return Estimate(masked.whiten(advantages, steps.mask) if whiten else advantages, returns)
