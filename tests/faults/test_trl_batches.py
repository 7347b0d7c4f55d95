"""Batches in which nothing, or nothing whole, is left to learn from; and a greedy completion that fails."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import toy  # noqa: E402

from faults import watch  # noqa: E402
from rl_estimators.trl import (  # noqa: E402
    EstimatorConfig,
    EstimatorTrainer,
    PPOConfig,
    PPOTrainer,
    ReMaxConfig,
    ReMaxTrainer,
)

MASKED = {"mask_truncated_completions": True, "max_completion_length": 2}


def all_cut_off(tiny, **more):
    """Settings under which no completion ends by itself, and those that do not are masked."""
    from transformers import AutoTokenizer

    never = {"suppress_tokens": [AutoTokenizer.from_pretrained(tiny).eos_token_id]}
    return {"generation_kwargs": never, "max_steps": 2, **MASKED, **more}


@pytest.mark.parametrize(
    ("loss", "compat"), [("trl", None), ("trl", "trl"), ("ppo_clip", None), ("gmpo", None)]
)
def test_all_completions_are_cut_off_and_masked(tiny, tmp_path, loss, compat):
    """No token is left in the loss: the weights stay as they are to the bit, and what is logged are numbers."""
    fields = toy.settings(tmp_path, **all_cut_off(tiny, policy_loss=loss))
    fields["adv_estimator_kwargs"] = {"compat": compat} if compat else {}
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**fields), tiny)
    seen = watch.AfterEachStep(trainer)
    trainer.train()
    assert watch.column(trainer, "completions/clipped_ratio") == [1, 1]
    assert watch.column(trainer, "grad_norm") == [0, 0]
    assert watch.column(trainer, "rl_estimators/update_skipped") == [0, 0]
    assert watch.equal(seen.policy[0], seen.policy[2])


@pytest.mark.parametrize("estimator", ["reinforce_pp", "rloo", "gdpo"])
def test_no_valid_token_for_any_kind_of_estimator(tiny, tmp_path, estimator):
    fields = toy.settings(tmp_path, **all_cut_off(tiny, adv_estimator=estimator))
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**fields), tiny)
    seen = watch.AfterEachStep(trainer)
    trainer.train()
    assert set(trainer._logs["advantages"]) == {0}
    assert watch.equal(seen.policy[0], seen.policy[2])


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_critic_that_no_token_teaches(tiny, tmp_path, critic):
    fields = {"num_generations": 1, "num_iterations": 1, "critic": critic, "critic_warmup_steps": 0}
    trainer = toy.make(PPOTrainer, PPOConfig(**toy.settings(tmp_path, **all_cut_off(tiny, **fields))), tiny)
    seen = watch.AfterEachStep(trainer)
    trainer.train()
    assert watch.equal(seen.policy[0], seen.policy[2])
    assert watch.equal(seen.critic[0], seen.critic[2])
    assert watch.column(trainer, "critic/update_skipped") == [0, 0]
    assert watch.column(trainer, "critic/value_loss") == [0, 0]


def test_the_one_that_is_not_cut_off_teaches(tiny, tmp_path):
    """So the above is not because nothing ever moves under these settings."""
    fields = toy.settings(tmp_path, adv_estimator="reinforce", max_steps=1, **MASKED)
    trainer = toy.make(
        EstimatorTrainer, EstimatorConfig(**fields), tiny, reward_funcs=lambda prompts, **_: [1.0] * 8
    )
    seen = watch.AfterEachStep(trainer)
    trainer.train()
    assert 0 < watch.column(trainer, "completions/clipped_ratio")[0] < 1
    assert not watch.equal(seen.policy[0], seen.policy[1])


@pytest.mark.parametrize("together", [False, True])
def test_a_greedy_completion_that_fails(tiny, tmp_path, together):
    """The run ends with the engine's error, the weights are those of the step before, and the same trainer goes on."""
    fields = toy.settings(tmp_path, max_steps=3, num_generations=2, greedy_with_samples=together)
    trainer = toy.make(ReMaxTrainer, ReMaxConfig(**fields), tiny)
    seen = watch.AfterEachStep(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    original, calls, failing = model.generate, [], 2 if together else 4  # one call a step, or two

    def generate(*args, **kwargs):
        calls.append(kwargs)
        if len(calls) == failing:
            raise RuntimeError("the engine is out of memory")
        return original(*args, **kwargs)

    model.generate = generate
    generation = trainer.generation_config
    with pytest.raises(RuntimeError, match="the engine is out of memory"):
        trainer.train()
    assert len(seen.policy) == 2
    assert watch.equal(toy.weights(trainer), seen.policy[1])
    assert trainer.generation_config is generation
    assert generation.do_sample
    assert vars(model)["generate"] is generate
    trainer.train()
    assert trainer.state.global_step == 3
