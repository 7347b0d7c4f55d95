"""Decoupled GAE: one lambda for the actor, another for the critic's targets.

Source: Yuan et al., What's Behind PPO's Collapse in Long-CoT? Value Optimization Holds the Secret (VC-PPO),
"Decoupled-GAE" (https://arxiv.org/abs/2503.01491); taken over by VAPO (https://arxiv.org/abs/2504.05118).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum
from rl_estimators.steps import read_steps, td_errors
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, whitened


@register_adv_est("decoupled_gae", source="https://arxiv.org/abs/2503.01491 Decoupled-GAE")
def decoupled_gae(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    critic_lam: float = 1.0,
    whiten: bool = True,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Estimate:
    r"""Give the actor little variance and the critic no bias.

    .. math::
        A_k = \sum_{j \ge k} (\gamma\lambda)^{j-k} \delta_j, \quad
        R_k = V_k + \sum_{j \ge k} (\gamma\lambda_\mathrm{critic})^{j-k} \delta_j, \quad
        \delta_k = r_k + \gamma V_{k+1} - V_k

    over the valid tokens k = 1 ... n of a response. :math:`V_{n+1}` is 0, or the bootstrap value of a truncated
    response. With a lambda below 1 a reward at the end of a long response never reaches the critic's early values;
    with a critic lambda of 1 its target is the return itself. An actor's gradient stays unbiased, as far as the
    values are right, with any lambda. Equal lambdas give ``gae``. verl 0.9 has no such estimator; its
    ``algorithm.lam``, 1 unless set, is the actor's here.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        lam: The actor's lambda, in [0, 1]; the paper's 0.95 by default.
        critic_lam: The lambda of the critic's targets, in [0, 1]; the paper's 1 by default.
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages with the actor's lambda, and returns with the critic's, ``(B, T)``.
        A response with a reward or value that is not finite has the advantage 0 and its old values as returns,
        where finite.

    Raises:
        InputError: gamma or a lambda outside [0, 1]; ``truncated`` without ``bootstrap_values`` or the reverse;
            a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("decoupled_gae", whitening, whiten)
    check_range("decoupled_gae", high=1.0, gamma=gamma, lam=lam, critic_lam=critic_lam)
    steps = read_steps(
        "decoupled_gae", token_level_rewards, values, response_mask, truncated, bootstrap_values
    )
    errors = td_errors(steps, gamma)
    advantages = discounted_sum(errors, steps.mask, gamma * lam)
    returns = discounted_sum(errors, steps.mask, gamma * critic_lam) + steps.values
    return Estimate(whitened(advantages, steps.mask, how) if whiten else advantages, returns)
