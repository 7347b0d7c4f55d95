"""Rewards that sit on masked tokens.

A framework puts a trajectory's score on its last token. After a tool call that token may be the tool's output, which
the policy did not write and the mask leaves out. The estimators do not look there, so the score is carried to
the last token before it that the policy did write: by `estimate` if it is asked to (``masked_rewards="carry"``), in verl
unless ``masked_rewards=drop`` is set, in TRL always, by the trainer.
"""

import torch
from torch import Tensor

from rl_estimators import backends
from rl_estimators.backends.memory import empty
from rl_estimators.masked import as_mask
from rl_estimators.metrics import count

__all__ = ["carry_rewards"]


def carry_rewards(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """Move each finite reward on a masked token to the last valid token before it, else to the first after it.

    Counted in metrics: ``carried_rewards``; ``ignored_rewards``, which are not finite (padding is) or belong to
    a response without any valid token.

    Args:
        rewards: ``(B, T)``; not changed.
        response_mask: ``(B, T)``, nonzero on valid tokens.

    Returns:
        ``(B, T)``; the same tensor if no masked token has a reward.
    """
    rows = backends.strays(rewards, response_mask).nonzero()[:, 0]
    if not len(rows):
        count("carried_rewards", lambda: rows.new_zeros(()))
        count("ignored_rewards", lambda: rows.new_zeros(()))
        return rewards
    out = empty(tuple(rewards.shape), rewards.dtype, rewards.device).copy_(rewards)
    out[rows] = _carry(rewards[rows], as_mask(response_mask[rows]))
    return out


def _carry(rewards: Tensor, mask: Tensor) -> Tensor:
    stray = ~mask & (rewards != 0)
    movable = stray & torch.isfinite(rewards) & mask.any(-1, keepdim=True)
    count("carried_rewards", lambda: movable.sum())
    count("ignored_rewards", lambda: (stray & ~movable).sum())
    positions = torch.arange(rewards.shape[-1], device=rewards.device)
    before = torch.where(mask, positions, -1).cummax(-1).values
    first = mask.int().argmax(-1, keepdim=True)
    target = torch.where(before >= 0, before, first)
    kept = torch.where(movable, 0, rewards)
    return kept.scatter_add(-1, target, torch.where(movable, rewards, 0))
