"""Counts on the side."""

import torch

from rl_estimators import collect_metrics, estimate


def run():
    nan = float("nan")
    rewards = torch.tensor([[1.0, 0.0], [nan, 0.0], [float("inf"), 0.0], [0.0, nan]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [0, 0]])
    return estimate("reinforce_pp", token_level_rewards=rewards, response_mask=mask)


def test_responses_without_a_usable_score_are_counted_and_padding_rows_are_not():
    with collect_metrics() as metrics:
        run()
    assert {name: float(value) for name, value in metrics.items()} == {"excluded_responses": 2}


def test_two_calls_add_up():
    with collect_metrics() as metrics:
        run()
        run()
    assert float(metrics["excluded_responses"]) == 4


def test_nobody_listens():
    with collect_metrics() as metrics:
        pass
    run()
    assert metrics == {}
