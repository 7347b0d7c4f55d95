"""Reward functions that fail in TRL. Those that return None or NaN are in tests/trl/test_rewards.py."""

import math

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402

from faults import watch  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, PPOConfig, PPOTrainer  # noqa: E402


class Failing:
    """The toy's reward function, but for one call, which does ``instead``."""

    def __init__(self, call, instead):
        self.call, self.instead, self.calls = call, instead, 0
        self.__name__ = "judge"

    def __call__(self, prompts, completions, **more):
        self.calls += 1
        return (self.instead if self.calls == self.call else toy.reward)(prompts, completions)


def raises(prompts, completions):
    raise RuntimeError("the judge is out")


def ppo(folder, **fields):
    return PPOConfig(**toy.settings(folder, **{"num_generations": 1, "num_iterations": 1, **fields}))


@pytest.mark.parametrize(
    ("instead", "error", "message"),
    [
        (raises, RuntimeError, "the judge is out"),
        (
            lambda prompts, completions: [1.0] * (len(prompts) - 1),
            ValueError,
            "'judge' returned 7 rewards, but 8",
        ),
        (lambda prompts, completions: [1.0], ValueError, "'judge' returned 1 rewards, but 8"),
        (
            lambda prompts, completions: [*toy.reward(prompts, completions), 0.0],
            ValueError,
            "returned 9 rewards",
        ),
        (lambda prompts, completions: None, TypeError, "NoneType"),
        (lambda prompts, completions: ["good"] * len(prompts), (TypeError, ValueError), "str"),
    ],
    ids=["raises", "one_missing", "one_alone", "one_too_many", "nothing", "words"],
)
def test_the_error_is_the_users_and_the_trainer_is_as_it_was(tiny, tmp_path, instead, error, message):
    """The second batch is not scored: both models are those of the first, and the same trainer can go on."""
    trainer = toy.make(PPOTrainer, ppo(tmp_path, max_steps=3), tiny, reward_funcs=Failing(2, instead))
    seen = watch.AfterEachStep(trainer)
    with pytest.raises(error, match=message):
        trainer.train()
    assert len(seen.policy) == 2
    assert watch.equal(toy.weights(trainer), seen.policy[1])
    assert watch.equal(dict(trainer.critic.module.state_dict()), seen.critic[1])
    assert trainer._scored is None
    trainer.train()
    assert trainer.state.global_step == 3
    assert watch.finite(toy.weights(trainer))


@pytest.mark.parametrize(
    ("bad", "critic"), [(math.inf, True), (-math.inf, False), (math.nan, True), (None, False)]
)
def test_a_number_that_is_none_leaves_the_others_alone(tiny, tmp_path, bad, critic):
    """One of 8 completions has no score: 7 teach, the weights stay numbers, and the log says so."""

    def one_bad(prompts, completions):
        return [bad, *toy.reward(prompts, completions)[1:]]

    cls, config = PPOTrainer, ppo(tmp_path, max_steps=2)
    if not critic:
        fields = toy.settings(tmp_path, max_steps=2, adv_estimator="reinforce_pp")
        cls, config = EstimatorTrainer, EstimatorConfig(**fields)
    trainer = toy.make(cls, config, tiny, reward_funcs=Failing(1, one_bad))
    seen = watch.AfterEachStep(trainer)
    trainer.train()
    assert watch.column(trainer, "rl_estimators/excluded_responses") == [1, 0]
    assert watch.column(trainer, "rl_estimators/update_skipped") == [0, 0]
    for models in (seen.policy, seen.critic) if critic else (seen.policy,):
        assert not watch.equal(models[0], models[1])
        assert all(map(watch.finite, models))


def test_infinity_less_infinity_is_no_score(tiny, tmp_path):
    """Two functions say plus and minus infinity: their sum is NaN, and the completion is left out."""

    def plus(prompts, **_):
        return [math.inf] + [0.0] * (len(prompts) - 1)

    def minus(prompts, **_):
        return [-math.inf] + [1.0] * (len(prompts) - 1)

    config = EstimatorConfig(**toy.settings(tmp_path, max_steps=1, adv_estimator="reinforce"))
    trainer = toy.make(EstimatorTrainer, config, tiny, reward_funcs=[plus, minus])
    trainer.train()
    assert list(trainer._logs["advantages"]) == [0, *[1] * 7]
    assert watch.column(trainer, "rl_estimators/excluded_responses") == [1]
    assert watch.finite(toy.weights(trainer))
