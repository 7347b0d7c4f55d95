"""The Monte Carlo return minus the value: a critic as baseline and nothing else.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 3,
eq. 18 (https://arxiv.org/abs/1506.02438); REINFORCE with baseline in Sutton and Barto, Reinforcement Learning: An
Introduction, second edition, section 13.4.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum, next_valid
from rl_estimators.steps import read_steps
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, whitened


@register_adv_est("mc", source="https://arxiv.org/abs/1506.02438 eq. 18")
def mc(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    whiten: bool = True,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Estimate:
    r"""Weigh each token by how much better it went than the critic had expected.

    .. math::
        R_k = \sum_{j \ge k} \gamma^{j-k} r_j + \gamma^{n+1-k} V_{n+1}, \quad A_k = R_k - V_k

    over the valid tokens k = 1 ... n of a response. :math:`V_{n+1}` is 0, or the bootstrap value of a truncated
    response. No bias, whatever the critic says (but for that last value), and all of the return's variance that the
    critic does not foresee: ``gae`` with lambda = 1, ``k_step_td`` with k >= n. It is summed from the rewards, so
    the values in between do not even leave rounding errors. The returns R are the critic's targets. verl 0.9 has it
    as ``gae`` with ``lam=1``.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages and returns, ``(B, T)``.
        A response with a reward or value that is not finite has the advantage 0 and its old values as returns,
        where finite.

    Raises:
        InputError: gamma outside [0, 1]; ``truncated`` without ``bootstrap_values`` or the reverse;
            a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("mc", whitening, whiten)
    check_range("mc", high=1.0, gamma=gamma)
    rewards, old, mask, last = read_steps(
        "mc", token_level_rewards, values, response_mask, truncated, bootstrap_values
    )
    if last is not None:
        at_the_end = next_valid(torch.zeros_like(rewards), mask, last)
        rewards = torch.where(mask, rewards + gamma * at_the_end, 0)
    target = discounted_sum(rewards, mask, gamma)
    advantages = torch.where(mask, target - old, 0)
    returns = torch.where(mask, target, old)
    return Estimate(whitened(advantages, mask, how) if whiten else advantages, returns)
