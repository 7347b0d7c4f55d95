"""PPO learns the smoke task with either critic, and a critic foresees what can be foreseen."""

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import critics  # noqa: E402
import toy  # noqa: E402

from rl_estimators.trl import PPOConfig, PPOTrainer  # noqa: E402

STEPS = 40


def mean(numbers):
    return sum(numbers) / len(numbers)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The smoke task's own model: it has learnt enough for some of its answers to be right."""
    folder = tmp_path_factory.mktemp("warm")
    toy.digit_sort("model").build(folder, 0)
    return folder


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("passes", [1, 4])
def test_ppo_sorts_digits(warm, tmp_path, critic, passes):
    """40 steps, 128 completions each, PPOConfig's defaults but for the learning rates of so small a model."""
    fields = toy.settings(tmp_path, max_steps=STEPS, per_device_train_batch_size=128, num_generations=1)
    fields |= {"lr_scheduler_type": "constant", "critic": critic, "critic_learning_rate": 3e-3}
    config = PPOConfig(**fields, num_iterations=passes)
    rewards = toy.train(PPOTrainer, config, warm, train_dataset=toy.rows(2048)).column("reward")
    assert len(rewards) == STEPS // passes  # one for each batch of completions
    some = len(rewards) // 8
    assert mean(rewards[-some:]) >= mean(rewards[:some]) + 0.10


def by_first_digit(prompts, completions, **_):
    """A reward that is known before the first token."""
    return [int(prompt[0]) / 10 for prompt in prompts]


@pytest.mark.parametrize(("critic", "vf_coef"), [("separate", 0.1), ("shared", 10.0)])
def test_the_critic_foresees_what_the_prompt_decides(warm, tmp_path, critic, vf_coef):
    """The returns vary with the prompt alone. A shared critic learns it against the policy's noise, so it needs weight."""
    fields = {"max_steps": STEPS, "per_device_train_batch_size": 64, "critic": critic, "vf_coef": vf_coef}
    config = critics.config(tmp_path, **fields)
    run = toy.train(PPOTrainer, config, warm, reward_funcs=by_first_digit, train_dataset=toy.rows(2048))
    explained = run.column("critic/explained_variance")
    assert explained[0] == 0.0
    assert mean(explained[-8:]) > 0.3
