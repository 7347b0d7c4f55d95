"""Completions without a reward say nothing about the critic."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402

from rl_estimators.trl import PPOConfig, PPOTrainer  # noqa: E402


def every_fourth(prompts, completions, **_):
    """None for three of four."""
    return [
        number if place % 4 == 0 else None for place, number in enumerate(toy.reward(prompts, completions))
    ]


def test_they_do_not_count_as_foreseen(tiny, tmp_path, monkeypatch):
    """An estimator returns their old values, which equal the values: they would raise the explained variance."""
    fields = toy.settings(tmp_path, max_steps=1, num_generations=1, num_iterations=1)
    trainer = toy.make(PPOTrainer, PPOConfig(**fields), tiny, reward_funcs=every_fourth)
    seen = []
    monkeypatch.setattr(trainer.critic, "log_rollout", lambda *given: seen.append(given))
    trainer.train()
    [(values, returns, mask, mode)] = seen
    assert mode == "train"
    assert mask.any(-1).tolist() == [True, False, False, False] * 2
    assert values.shape == returns.shape == mask.shape
    assert trainer.state.log_history[0]["rl_estimators/excluded_responses"] == 6
