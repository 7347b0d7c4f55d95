"""The k-step return minus the value: k rewards as they came, then the critic.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 3,
eq. 11-15 (https://arxiv.org/abs/1506.02438); Sutton and Barto, Reinforcement Learning: An Introduction, second
edition, section 7.1, eq. 7.1.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.calls import register_adv_est
from rl_estimators.errors import InputError
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import k_step_return
from rl_estimators.steps import read_steps
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, whitened


@register_adv_est("k_step_td", source="https://arxiv.org/abs/1506.02438 eq. 11-15")
def k_step_td(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    k: int = 1,
    whiten: bool = True,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Estimate:
    r"""Weigh each token by the next k rewards and the critic's value after them.

    .. math::
        R_j = \sum_{i=0}^{m-1} \gamma^i r_{j+i} + \gamma^m V_{j+m}, \quad m = \min(k, n+1-j), \quad
        A_j = R_j - V_j

    over the valid tokens j = 1 ... n of a response. :math:`V_{n+1}` is 0, or the bootstrap value of a truncated
    response. k = 1 is ``td``, k >= n is ``mc``; between them k trades bias for variance with a sharp edge where
    ``gae`` has a soft one. The returns R are the critic's targets. verl 0.9 has no such estimator.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        k: Steps before the critic is asked, in valid tokens; a whole number, at least 1.
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages and returns, ``(B, T)``.
        A response with a reward or value that is not finite has the advantage 0 and its old values as returns,
        where finite.

    Raises:
        InputError: gamma outside [0, 1]; k below 1 or no whole number; ``truncated`` without ``bootstrap_values`` or the reverse;
            a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("k_step_td", whitening, whiten)
    check_range("k_step_td", high=1.0, gamma=gamma)
    check_range("k_step_td", low=1.0, k=k)
    if k % 1 != 0:
        raise InputError(f"k_step_td: k is {k!r}, expected a whole number")
    steps = read_steps("k_step_td", token_level_rewards, values, response_mask, truncated, bootstrap_values)
    target = k_step_return(steps.rewards, steps.values, steps.mask, gamma, int(k), steps.last)
    advantages = torch.where(steps.mask, target - steps.values, 0)
    returns = torch.where(steps.mask, target, steps.values)
    return Estimate(whitened(advantages, steps.mask, how) if whiten else advantages, returns)
