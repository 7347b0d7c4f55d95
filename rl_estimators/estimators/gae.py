"""Generalized advantage estimation: a critic as the baseline of every token.

Source: Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 3,
eq. 11-16 (https://arxiv.org/abs/1506.02438).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators import backends
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.steps import read_last
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, standardised


@register_adv_est("gae", source="https://arxiv.org/abs/1506.02438 section 3")
@compat(verl={"whiten": True, "whitening": STANDARD})
def gae(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
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
    masked position touches a valid token; whitening equal numbers gives exactly 0. Elsewhere the
    defaults give verl's numbers; ``compat="verl"`` refuses options that would not.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        lam: Lambda, in [0, 1].
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages and returns, ``(B, T)``. A response with a reward or value that is not finite has the
        advantage 0 and its old values as returns, where finite: it teaches neither actor nor critic.

    Raises:
        InputError: gamma or lam outside [0, 1]; ``truncated`` without ``bootstrap_values`` or the reverse;
            a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("gae", whitening, whiten)
    check_range("gae", high=1.0, gamma=gamma, lam=lam)
    last = read_last("gae", truncated, bootstrap_values)
    advantages, returns, rows = backends.gae(
        token_level_rewards, values, response_mask, last, gamma, gamma * lam
    )
    if whiten:
        standardised(advantages, response_mask, rows, how, out=advantages)
    return Estimate(advantages, returns)
