"""Small batches worked by hand, in float64: short sums and products, so 1e-12 leaves room for rounding only."""

import torch

import rl_estimators


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(actual, *rows):
    torch.testing.assert_close(actual, matrix(*rows), rtol=1e-12, atol=1e-12)


def estimate(name, rewards, mask=None, **kwargs):
    rewards = matrix(*rewards)
    mask = torch.ones_like(rewards) if mask is None else matrix(*mask)
    return rl_estimators.estimate(name, token_level_rewards=rewards, response_mask=mask, **kwargs)
