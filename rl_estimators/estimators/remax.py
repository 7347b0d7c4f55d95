"""ReMax: the reward of the greedy response as baseline.

Source: Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large
Language Models, section 4, algorithm 1 (https://arxiv.org/abs/2310.10505).
"""

import torch
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum


@register_adv_est("remax", source="https://arxiv.org/abs/2310.10505 algorithm 1")
def remax(
    token_level_rewards: Tensor, response_mask: Tensor, reward_baselines: Tensor, gamma: float = 1.0
) -> Estimate:
    r"""Subtract from the reward-to-go what the greedy response to the same prompt earned.

    .. math:: A_k = \sum_{j \ge k} \gamma^{j-k} r_j - r(x, \bar y)

    over the valid tokens k = 1 ... n of a response to prompt x with greedy response :math:`\bar y`. The baseline
    does not depend on the sampled tokens, so it takes variance away without adding bias.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        reward_baselines: ``(B,)`` total reward of the greedy response to each response's prompt.
        gamma: Discount per valid token, in [0, 1]; the paper has 1.

    Returns:
        Advantages and the reward-to-go as returns, ``(B, T)``. A response whose baseline is not finite is
        excluded as if its own reward were not.

    Raises:
        InputError: gamma outside [0, 1].
    """
    check_range("remax", high=1.0, gamma=gamma)
    rewards, mask, _ = masked.valid(token_level_rewards, response_mask, reward_baselines)
    returns = discounted_sum(rewards, mask, gamma)
    return Estimate(torch.where(mask, returns - reward_baselines[:, None], 0).to(returns.dtype), returns)
