"""By hand, and against what it must become at the ends of its option's range."""

import my_estimators  # noqa: F401  it registers what it has
import pytest
import torch

import rl_estimators

SCORES = [1.0, 0.0, 0.0, 0.0]  # two prompts: one right answer of two, none of two; the batch's mean is 1/4
BATCH = {
    "token_level_rewards": torch.tensor([[0.0, score] for score in SCORES]),
    "response_mask": torch.ones(4, 2),
    "index": ["solved", "solved", "hopeless", "hopeless"],
}


def advantages(**options: float) -> list[float]:
    return rl_estimators.estimate("shrunk_mean", **BATCH, **options).advantages[:, 0].tolist()


def test_by_hand() -> None:
    """Baselines (1 + 2/4) / (2 + 2) and (0 + 2/4) / (2 + 2)."""
    assert advantages(strength=2.0) == [0.625, -0.375, -0.125, -0.125]


def test_without_strength_it_is_grpo_without_its_division() -> None:
    expected = rl_estimators.estimate("grpo", **BATCH, norm_by_std=False).advantages[:, 0].tolist()
    assert advantages(strength=0.0) == expected == [0.5, -0.5, 0.0, 0.0]


def test_a_great_strength_is_the_batchs_mean() -> None:
    assert advantages(strength=1e9) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_nan_in_padding_stays_there() -> None:
    rewards, mask = torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), torch.tensor([[1, 0], [1, 1]])
    found = rl_estimators.estimate(
        "shrunk_mean", token_level_rewards=rewards, response_mask=mask, index=["q", "q"], strength=0.0
    )
    assert found.advantages.tolist() == [[0.5, 0.0], [-0.5, -0.5]]
