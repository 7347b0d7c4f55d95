"""The diagnostics in TRL's log: which there are, what they say of a batch that is known, and that nobody else notices."""

import math

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402

from rl_estimators.diagnostics import DIAGNOSTICS, PREFIX  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, PPOConfig, PPOTrainer, diagnostics  # noqa: E402

OF_CRITICS = {"explained_variance_before", "explained_variance_after", "value_clip_share"}
OF_UPDATES = {"ratio_mean", "ratio_std", "ratio_min", "ratio_max", "effective_sample_size", "policy_kl"}


def names(row):
    """The diagnostics that a row of the log has."""
    found = {key.removeprefix("eval_").removeprefix(PREFIX) for key in row if PREFIX in key}
    return found & DIAGNOSTICS.keys()


def first_and_second(prompts, completions, **_):
    """Two groups of four: 1, 0, 0, 0 and four times 0, whatever was written."""
    assert len(completions) == 8
    return [1.0] + [0.0] * 7


def config(folder, cls=EstimatorConfig, **fields):
    return cls(**toy.settings(folder, **{"max_steps": 1, **fields}))


def watched(trainer, monkeypatch):
    """What goes into the sums of a run's updates, micro-batch by micro-batch."""
    policy, critic = [], []

    def spy(calls, function):
        def call(*args):
            calls.append([x.clone() if isinstance(x, torch.Tensor) else x for x in args])
            return function(*args)

        return call

    monkeypatch.setattr(diagnostics, "policy_sums", spy(policy, diagnostics.policy_sums))
    monkeypatch.setattr(diagnostics, "value_sums", spy(critic, diagnostics.value_sums))
    trainer.train()
    return policy, critic


def flat(calls, column, mask):
    """The valid numbers of one argument over all calls, in numpy and float64."""
    return np.concatenate([call[column].double().numpy()[call[mask].numpy()] for call in calls])


def test_a_run_with_everything_logs_everything(tiny, tmp_path):
    """A critic, a reference model, several completions a prompt."""
    run = toy.train(PPOTrainer, config(tmp_path, PPOConfig, num_generations=4, num_iterations=1), tiny)
    row = run.trainer.state.log_history[0]
    assert names(row) == DIAGNOSTICS.keys()
    assert all(math.isfinite(row[PREFIX + name]) for name in DIAGNOSTICS)


@pytest.mark.parametrize("loss", ["trl", "ppo_clip"])
def test_without_a_critic_and_a_reference_the_rest(loss, tiny, tmp_path):
    run = toy.train(EstimatorTrainer, config(tmp_path, policy_loss=loss), tiny)
    assert names(run.trainer.state.log_history[0]) == DIAGNOSTICS.keys() - OF_CRITICS - {"reference_kl"}


def test_a_batch_that_is_known(tiny, tmp_path, monkeypatch):
    """grpo gives the first group advantages of 3/2 and three times -1/2, over the deviation 1/2 and 1e-6; the other 0."""
    trainer = toy.make(EstimatorTrainer, config(tmp_path), tiny, reward_funcs=first_and_second)
    masks = []
    measure = diagnostics.measure
    monkeypatch.setattr(
        diagnostics,
        "measure",
        lambda given, clean: masks.append(given["response_mask"]) or measure(given, clean),
    )
    trainer.train()
    row = trainer.state.log_history[0]
    lengths = masks[0].sum(-1).double().numpy()
    expected = {
        "zero_advantage_prompt_share": 0.5,
        "zero_advantage_token_share": lengths[4:].sum() / lengths.sum(),
        "all_wrong_group_share": 0.5,
        "all_right_group_share": 0.0,
        "advantage_min": -0.25 / (0.5 + 1e-6),
        "advantage_max": 0.75 / (0.5 + 1e-6),
        "advantage_mean": (0.75 * lengths[0] - 0.25 * lengths[1:4].sum()) / 0.5 / lengths.sum(),
        "reward_mean": 1 / 8,
        "reward_std": math.sqrt(1 / 8),  # (49 + 7) / 64 over 7
        "reward_std_within_groups": math.sqrt(0.75 / 6),
        "reward_std_between_groups": math.sqrt(1 / 32),  # means 1/4 and 0
        "excluded_responses": 0,
    }
    assert {name: row[PREFIX + name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_scores_are_those_without_the_divergence(tiny, tmp_path):
    """With the KL divergence in the rewards no answer would score exactly 0 or 1."""
    fields = {"kl_in_reward": True, "beta": 0.5, "kl_penalty": "k3"}
    trainer = toy.make(EstimatorTrainer, config(tmp_path, **fields), tiny, reward_funcs=first_and_second)
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # the reference model is a copy of what it was
            parameter.mul_(1.05)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["kl"] > 1e-4
    assert row[PREFIX + "reward_mean"] == 1 / 8
    assert row[PREFIX + "all_wrong_group_share"] == 0.5


def test_truncated_completions(tiny, tmp_path):
    """The limit of two tokens cuts off whatever does not end there, by TRL's own count of those that end."""
    run = toy.train(EstimatorTrainer, config(tmp_path, max_completion_length=2), tiny)
    row = run.trainer.state.log_history[0]
    assert row[PREFIX + "truncated_response_share"] == row["completions/clipped_ratio"] > 0


@pytest.mark.parametrize("loss", ["trl", "ppo_clip"])
def test_ratios_of_all_updates_on_a_batch(loss, tiny, tmp_path, monkeypatch):
    """Two passes of two micro-batches; by the definitions, over all of them, and once."""
    fields = {
        "num_iterations": 2,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
    }
    trainer = toy.make(EstimatorTrainer, config(tmp_path, policy_loss=loss, beta=0.1, **fields), tiny)
    policy, _ = watched(trainer, monkeypatch)
    rows = [row for row in trainer.state.log_history if names(row) >= OF_UPDATES]
    assert len(rows) == 2
    for number, row in enumerate(rows):
        calls = policy[4 * number : 4 * number + 4]
        new, old, reference = (flat(calls, column, 2) for column in (0, 1, 3))
        ratio = np.exp(new - old)
        assert np.abs(ratio - 1).max() > 1e-4
        expected = {
            "ratio_mean": ratio.mean(),
            "ratio_std": ratio.std(),
            "ratio_min": ratio.min(),
            "ratio_max": ratio.max(),
            "effective_sample_size": ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum()),
            "policy_kl": (ratio - 1 - (new - old)).mean(),
            "reference_kl": (old - reference).mean(),
        }
        assert {name: row[PREFIX + name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_first_update_has_the_policy_that_sampled(tiny, tmp_path):
    """One step a batch: TRL keeps no old log-probabilities, and every ratio is 1."""
    row = toy.train(EstimatorTrainer, config(tmp_path), tiny).trainer.state.log_history[0]
    expected = dict.fromkeys(("ratio_mean", "ratio_min", "ratio_max", "effective_sample_size"), 1.0)
    expected |= {"ratio_std": 0.0, "policy_kl": 0.0}
    assert {name: row[PREFIX + name] for name in expected} == expected


def explained(returns, values):
    return 1 - (returns - values).var() / returns.var()


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_critic_before_and_after(critic, tiny, tmp_path, monkeypatch):
    """Three passes over the second batch: the values it learns from, and those it predicts meanwhile, over all passes."""
    fields = {"num_iterations": 3, "max_steps": 6, "critic": critic, "critic_learning_rate": 1e-3}
    trainer = toy.make(PPOTrainer, config(tmp_path, PPOConfig, cliprange_value=0.01, **fields), tiny)
    _, calls = watched(trainer, monkeypatch)
    values, returns, vpreds = (flat(calls[3:], column, 2) for column in (0, 1, 3))
    clipped = values + np.clip(vpreds - values, -0.01, 0.01)
    expected = {
        "explained_variance_before": explained(returns, values),
        "explained_variance_after": explained(returns, vpreds),
        "value_clip_share": ((clipped - returns) ** 2 > (vpreds - returns) ** 2).mean(),
    }
    rows = trainer.state.log_history
    assert {name: rows[5][PREFIX + name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len({round(number, 3) for number in [0.0, *expected.values()]}) == 4
    before = pytest.approx(expected["explained_variance_before"], rel=1e-5, abs=1e-6)
    assert rows[3]["critic/explained_variance"] == before


def test_with_one_step_a_batch_the_critic_is_after_as_it_was_before(tiny, tmp_path):
    """As the entry says."""
    run = toy.train(PPOTrainer, config(tmp_path, PPOConfig, num_iterations=1), tiny)
    row = run.trainer.state.log_history[0]
    before, after = (row[PREFIX + f"explained_variance_{when}"] for when in ("before", "after"))
    assert after == pytest.approx(before, abs=1e-5)


def test_a_value_loss_without_a_clip(tiny, tmp_path):
    fields = {"value_loss": "huber", "cliprange_value": None, "num_iterations": 1}
    row = toy.train(PPOTrainer, config(tmp_path, PPOConfig, **fields), tiny).trainer.state.log_history[0]
    assert {"explained_variance_after"} == names(row) & {"explained_variance_after", "value_clip_share"}


def half_without_a_reward(prompts, completions, **_):
    return [number if place % 2 else None for place, number in enumerate(toy.reward(prompts, completions))]


def test_completions_without_a_reward_are_not_foreseen(tiny, tmp_path, monkeypatch):
    """Their targets are their old values: they stay out of what is said of the critic."""
    fields = config(tmp_path, PPOConfig, num_iterations=1)
    trainer = toy.make(PPOTrainer, fields, tiny, reward_funcs=half_without_a_reward)
    _, calls = watched(trainer, monkeypatch)
    (values, returns, mask, *_), *others = calls
    assert not others
    assert mask.any(-1).sum() == 4
    assert not torch.equal(values[mask], returns[mask])


def test_an_evaluation_logs_the_batch_and_no_update(tiny, tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    run = toy.train(EstimatorTrainer, config(tmp_path, **fields), tiny)
    (row,) = (row for row in run.trainer.state.log_history if "eval_reward" in row)
    assert {"advantage_mean", "all_wrong_group_share"} <= names(row)
    assert not names(row) & OF_UPDATES


class TestSwitchedOff:
    fields = {"num_iterations": 2, "max_steps": 2, "num_generations": 4}  # noqa: RUF012

    def test_nothing_is_logged_or_computed(self, tiny, tmp_path, monkeypatch):
        for name in ("measure", "policy_sums", "value_sums", "loggable"):
            monkeypatch.setattr(diagnostics, name, None)
        off = config(tmp_path, PPOConfig, diagnostics=False, **self.fields)
        run = toy.train(PPOTrainer, off, tiny)
        assert {name for row in run.trainer.state.log_history for name in names(row)} == {
            "excluded_responses"
        }

    def test_nothing_else_changes(self, tiny, tmp_path):
        """Every other number of the log and every weight are the same to the bit."""
        runs = [
            toy.train(PPOTrainer, config(tmp_path, PPOConfig, diagnostics=on, **self.fields), tiny)
            for on in (True, False)
        ]
        toy.same(*runs)
