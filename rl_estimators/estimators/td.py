"""The one-step TD error: a critic before and after each token.

Source: Sutton and Barto, Reinforcement Learning: An Introduction, second edition, section 6.1, eq. 6.5
(http://incompleteideas.net/book/the-book-2nd.html); as an advantage, Schulman et al., eq. 17
(https://arxiv.org/abs/1506.02438).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.steps import read_steps, td_errors
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, whitened


@register_adv_est("td", source="https://arxiv.org/abs/1506.02438 eq. 17")
def td(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    whiten: bool = True,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Estimate:
    r"""Weigh each token by its reward and what it changed in the critic's mind.

    .. math:: A_k = r_k + \gamma V_{k+1} - V_k, \quad R_k = A_k + V_k

    over the valid tokens k = 1 ... n of a response. :math:`V_{n+1}` is 0, or the bootstrap value of a truncated
    response. The least variance a critic can give, and all of its bias: ``gae`` with lambda = 0, ``k_step_td`` with
    k = 1. The returns R, the critic's targets, are taken before the advantages are whitened. verl 0.9 has it as
    ``gae`` with ``lam=0``.

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
    how = read_whitening("td", whitening, whiten)
    check_range("td", high=1.0, gamma=gamma)
    steps = read_steps("td", token_level_rewards, values, response_mask, truncated, bootstrap_values)
    advantages = td_errors(steps, gamma)
    returns = advantages + steps.values
    return Estimate(whitened(advantages, steps.mask, how) if whiten else advantages, returns)
