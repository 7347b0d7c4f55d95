"""REINFORCE++: the batch's mean as baseline, its standard deviation as scale.

Source: Hu et al., REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Normalization, v9,
section 3.1, eq. 4-5 (https://arxiv.org/abs/2501.03262v9).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators import backends
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, standardised


@register_adv_est("reinforce_pp", source="https://arxiv.org/abs/2501.03262v9 eq. 4-5")
@compat(verl={"whitening": STANDARD})
def reinforce_pp(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
) -> Estimate:
    r"""Normalise each token's reward-to-go over all valid tokens of the global batch.

    .. math::
        G_k = \sum_{j \ge k} \gamma^{j-k} r_j, \qquad
        A_k = \frac{G_k - \mathrm{mean}(G)}{\sqrt{\mathrm{var}(G) + 10^{-8}}}

    over the valid tokens k = 1 ... n of a response; the paper has gamma = 1. Its KL penalty, eq. 4's
    :math:`-\beta \sum_{j \ge k} \mathrm{KL}_j`, comes in with the token-level rewards
    (``algorithm.use_kl_in_reward`` in verl).

    Departures from verl's ``reinforce_plus_plus``: a batch of equal returns gets exactly 0, where verl amplifies
    rounding errors. The return is carried across holes in the mask, so that a turn before a tool call is credited
    with what came after, as in verl 0.9.1; earlier releases restart it there. Elsewhere the defaults give verl's
    numbers; ``compat="verl"`` refuses options that would not.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token, KL penalty included.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.

    Returns:
        Advantages and the reward-to-go as returns, ``(B, T)``.

    Raises:
        InputError: gamma outside [0, 1], or a ``whitening`` that does not fit.
    """
    how = read_whitening("reinforce_pp", whitening)
    check_range("reinforce_pp", high=1.0, gamma=gamma)
    _, returns, rows = backends.returns(token_level_rewards, response_mask, gamma)
    return Estimate(standardised(returns, response_mask, rows, how), returns)
