"""Turn-level GAE for agents: one step per turn.

Source: Li et al., Turn-PPO: Turn-Level Advantage Estimation with PPO for Improved Multi-Turn RL in Agentic LLMs, the
turn-level MDP (https://arxiv.org/abs/2512.17008).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.calls import register_adv_est
from rl_estimators.fields import check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum
from rl_estimators.steps import Steps, read_steps, td_errors
from rl_estimators.whitening import STANDARD, Whitening, read_whitening, whitened


@register_adv_est("turn_gae", source="https://arxiv.org/abs/2512.17008 turn-level MDP")
def turn_gae(
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
    r"""Give every token of a turn the turn's advantage.

    .. math::
        \delta_i = r_i + \gamma V_{i+1} - V_i, \quad
        A_i = \sum_{j \ge i} (\gamma\lambda)^{j-i} \delta_j, \quad
        R_i = A_i + V_i

    over the turns i = 1 ... m of a response. A turn is a run of valid tokens, and what the environment says between
    two of them is masked. Its reward :math:`r_i` is the undiscounted sum over its tokens; its value :math:`V_i` is the
    one before its first token, when the critic has read all that came before and nothing of the turn. :math:`V_{m+1}`
    is 0, or the bootstrap value of a truncated response. Every token of the turn gets :math:`A_i`, and
    :math:`R_i` as the critic's target: of a turn's values only the first enters, and the others may learn the same, so
    that a value loss needs no mask of its own. All must be finite all the same, or the response is excluded.

    Unlike in the other estimators a hole in the mask means something: it parts two turns. How wide it is, and what
    stands in it, does not matter. Turns that touch count as one. Whitening weighs each turn by its number of tokens.
    verl 0.9 has no such estimator. VAGEN's ``turn_wise_gae`` reads the value at a turn's last token and has targets
    there only.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        values: ``(B, T)`` the critic's value before each token, in units of reward.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        gamma: Discount per turn, in [0, 1].
        lam: Lambda, from turn to turn, in [0, 1].
        whiten: Give the advantages mean 0 and variance 1 over the valid tokens of the whole batch.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`.
        truncated: ``(B,)``, 1 on responses that were cut off, in any dtype; None: all are finished.
        bootstrap_values: ``(B,)`` the critic's value after the last token, read where ``truncated``.

    Returns:
        Advantages and returns, ``(B, T)``.
        A response with a reward or value that is not finite has the advantage 0 and its old values as returns,
        where finite.

    Raises:
        InputError: gamma or lam outside [0, 1]; ``truncated`` without ``bootstrap_values`` or the reverse;
            a ``whitening`` that does not fit, or is given without ``whiten``.
    """
    how = read_whitening("turn_gae", whitening, whiten)
    check_range("turn_gae", high=1.0, gamma=gamma, lam=lam)
    steps = read_steps("turn_gae", token_level_rewards, values, response_mask, truncated, bootstrap_values)
    turns, number = _turns(steps)
    by_turn = discounted_sum(td_errors(turns, gamma), turns.mask, gamma * lam)
    advantages = torch.where(steps.mask, by_turn.gather(-1, number), 0)
    targets = (by_turn + turns.values).gather(-1, number)
    returns = torch.where(steps.mask, targets, steps.values)
    return Estimate(whitened(advantages, steps.mask, how) if whiten else advantages, returns)


def _turns(steps: Steps) -> tuple[Steps, Tensor]:
    """The turns as steps, turn i in column i, and the ``(B, T)`` number of each token's turn."""
    mask = steps.mask
    before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=-1)
    first = mask & ~before
    number = (first.cumsum(-1) - 1).clamp(min=0)
    blank = torch.zeros_like(steps.rewards)
    rewards = blank.scatter_add(-1, number, steps.rewards)
    values = blank.scatter_add(-1, number, torch.where(first, steps.values, 0))
    there = torch.arange(mask.shape[-1], device=mask.device) < first.sum(-1, keepdim=True)
    return Steps(rewards, values, there, steps.last), number
