"""A batch with whatever may stand where nobody wrote, and what GAE is, one token after the other."""

import torch

NAN, INF = float("nan"), float("inf")


def batch(rows, length, *, holes=False, dtype=torch.float32, fill=NAN, seed=0):
    """Rewards, values and a mask; what is masked holds ``fill``."""
    draw = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(rows, length, generator=draw).to(dtype) for _ in range(2))
    mask = torch.arange(length) < torch.randint(0, length + 1, (rows, 1), generator=draw)
    if holes:
        mask &= torch.rand(rows, length, generator=draw) > 0.3
    return rewards.masked_fill(~mask, fill), values.masked_fill(~mask, fill), mask


def sequential(rewards, values, mask, last, gamma, decay, dtype):
    """A = r + gamma V' - V + d A', R = A + V, over the valid tokens from right to left."""
    advantages, returns = (torch.zeros(rewards.shape, dtype=dtype) for _ in range(2))
    for b in range(len(rewards)):
        later, following = torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype)
        if last is not None:
            following = last[b].to(dtype)
        for t in mask[b].nonzero().flatten().tolist()[::-1]:
            value = values[b, t].to(dtype)
            later = rewards[b, t].to(dtype) + gamma * following - value + decay * later
            following = value
            advantages[b, t], returns[b, t] = later, later + value
    return advantages, returns
