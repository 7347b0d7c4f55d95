"""Rewards on tokens that the policy did not write."""

import torch

from rl_estimators import collect_metrics
from rl_estimators.carry import carry_rewards

NAN = float("nan")


def carry(rewards, mask):
    rewards = torch.tensor(rewards)
    before = rewards.clone()
    with collect_metrics() as metrics:
        result = carry_rewards(rewards, torch.tensor(mask))
    assert torch.equal(rewards.nan_to_num(), before.nan_to_num())
    return result.tolist(), {name: int(number) for name, number in metrics.items()}


def test_to_the_last_valid_token_before():
    """Tool output (mask 0) between two turns and at the end; each reward goes to the turn before it."""
    rewards, counts = carry([[0.0, 1.0, 2.0, 0.5, 4.0, 8.0]], [[1, 1, 0, 1, 0, 0]])
    assert rewards == [[0.0, 3.0, 0.0, 12.5, 0.0, 0.0]]
    assert counts == {"carried_rewards": 3, "ignored_rewards": 0}


def test_to_the_first_valid_token_if_there_is_none_before():
    assert carry([[5.0, 0.0, 1.0]], [[0, 1, 1]])[0] == [[0.0, 5.0, 1.0]]


def test_nothing_to_carry_leaves_the_tensor_alone():
    rewards = torch.ones(1, 2)
    assert carry_rewards(rewards, torch.ones(1, 2)) is rewards


def test_padding_that_is_not_finite_is_counted_and_stays_where_it_is():
    rewards, counts = carry([[1.0, NAN, 2.0]], [[1, 0, 0]])
    assert rewards[0][0] == 3
    assert counts == {"carried_rewards": 1, "ignored_rewards": 1}


def test_a_response_without_valid_tokens_has_nowhere_to_put_it():
    rewards, counts = carry([[1.0, 0.0], [0.0, 2.0]], [[0, 0], [1, 0]])
    assert rewards == [[1.0, 0.0], [2.0, 0.0]]
    assert counts == {"carried_rewards": 1, "ignored_rewards": 1}


def test_bool_float_and_integer_masks_agree():
    rewards = torch.tensor([[0.0, 1.0]])
    for dtype in (torch.bool, torch.float32, torch.int64):
        assert carry_rewards(rewards, torch.tensor([[1, 0]]).to(dtype)).tolist() == [[1.0, 0.0]]
