"""Length-adaptive GAE: the longer the response, the closer lambda to 1.

Source: Yue et al., VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks, length-adaptive
GAE, eq. 5 (https://arxiv.org/abs/2504.05118).
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


@register_adv_est("length_adaptive_gae", source="https://arxiv.org/abs/2504.05118 eq. 5")
def length_adaptive_gae(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    alpha: float = 0.05,
    critic_lam: float = 1.0,
    whiten: bool = True,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Estimate:
    r"""Let lambda reach over the same share of every response.

    .. math::
        \lambda_b = 1 - \frac{1}{\alpha \, n_b}, \quad
        A_k = \sum_{j \ge k} (\gamma\lambda_b)^{j-k} \delta_j, \quad
        R_k = V_k + \sum_{j \ge k} (\gamma\lambda_\mathrm{critic})^{j-k} \delta_j, \quad
        \delta_k = r_k + \gamma V_{k+1} - V_k

    over the valid tokens k = 1 ... n of response b, with :math:`\lambda_b` clipped to [0, 1]. :math:`V_{n+1}` is 0,
    or the bootstrap value of a truncated response. The weights of all TD errors of a long response then sum up to
    :math:`1/(1-\lambda_b) = \alpha n_b`. A fixed lambda of 0.95 forgets after some 20 tokens, however long the
    response. verl 0.9 has no such estimator.

    Departures from the paper: n counts the tokens the policy wrote, as the paper knows no others; a response of at
    most :math:`1/\alpha` tokens (20 by default), for which the formula is below 0, gets lambda = 0, its TD errors.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        alpha: How much of a response lambda reaches over; at least 0, the paper's 0.05 by default.
        critic_lam: The lambda of the critic's targets, in [0, 1]; the paper's 1 by default.
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages with each response's lambda, and returns with the critic's, ``(B, T)``.
        A response with a reward or value that is not finite has the advantage 0 and its old values as returns,
        where finite.

    Raises:
        InputError: gamma or critic_lam outside [0, 1]; alpha below 0; ``truncated`` without ``bootstrap_values`` or the reverse;
            a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("length_adaptive_gae", whitening, whiten)
    check_range("length_adaptive_gae", high=1.0, gamma=gamma, critic_lam=critic_lam)
    check_range("length_adaptive_gae", alpha=alpha)
    steps = read_steps(
        "length_adaptive_gae", token_level_rewards, values, response_mask, truncated, bootstrap_values
    )
    errors = td_errors(steps, gamma)
    length = steps.mask.sum(-1).to(errors.dtype)
    lam = (1 - 1 / (alpha * length)).clamp(0, 1)
    advantages = discounted_sum(errors, steps.mask, gamma * lam)
    returns = discounted_sum(errors, steps.mask, gamma * critic_lam) + steps.values
    return Estimate(whitened(advantages, steps.mask, how) if whiten else advantages, returns)
