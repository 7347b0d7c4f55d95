"""REINFORCE: the raw return, without a baseline.

Source: Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, Machine
Learning 8, 1992, episodic REINFORCE with the baseline 0 (https://doi.org/10.1007/BF00992696).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, whitened


@register_adv_est("reinforce", source="https://doi.org/10.1007/BF00992696 episodic REINFORCE")
def reinforce(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    gamma: float = 1.0,
    whiten: bool = False,
    whitening: Whitening | Mapping[str, Any] = STANDARD,
) -> Estimate:
    r"""Weigh each token by the return that followed it: the plain policy gradient, which the others improve on.

    .. math:: A_k = \sum_{j \ge k} \gamma^{j-k} r_j

    over the valid tokens k = 1 ... n of a response. Unbiased for gamma = 1, and as noisy as returns are. Whitened
    it is ``reinforce_pp``.

    Departure from the paper: Williams gives every step the whole return. What came before a token does not depend on
    it, so leaving it out keeps the expected gradient and takes variance away. For a reward at the end with gamma = 1
    both are the same. verl 0.9 has no such estimator; its nearest is ``reinforce_plus_plus``, always whitened.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per valid token, in [0, 1].
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch; off by default.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.

    Returns:
        Advantages, and the reward-to-go as returns, ``(B, T)``: without whitening the same numbers. A response with a
        reward that is not finite has 0 in both.

    Raises:
        InputError: gamma outside [0, 1]; a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("reinforce", whitening, whiten)
    check_range("reinforce", high=1.0, gamma=gamma)
    rewards, mask, _ = masked.valid(token_level_rewards, response_mask)
    returns = discounted_sum(rewards, mask, gamma)
    return Estimate(whitened(returns, mask, how) if whiten else returns, returns)
