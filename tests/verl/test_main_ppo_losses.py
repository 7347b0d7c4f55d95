"""Runs of verl's real `main_ppo` with a value loss and a policy loss of ours, in both of its trainers."""

import numpy as np
import pytest
import runs
from reference import definitions

pytestmark = [pytest.mark.verl, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ANSWERS, DELTA = 32, 0.01
SMALL = [
    f"data.train_batch_size={ANSWERS}",
    f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={ANSWERS // 2}",
    f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={ANSWERS // 2}",
    # The actor is updated twice a step, so that its ratio leaves 1; the critic once, in four micro-batches.
    f"actor_rollout_ref.actor.ppo_mini_batch_size={ANSWERS // 2}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    f"critic.ppo_mini_batch_size={ANSWERS}",
    "critic.ppo_micro_batch_size_per_gpu=8",
]


TWO_WORKERS = ["trainer.n_gpus_per_node=2", "++ray_kwargs.ray_init.num_gpus=2"]
HUBER = ["+rl_estimators.value_loss.name=huber", f"+rl_estimators.value_loss.delta={DELTA}"]


def columns(record, *names):
    """By name, for the definitions."""
    return dict(zip(names, runs.arrays(record, *names), strict=True))


def check_advantages(record, expected):
    """fp32 sums over a hundred numbers of about 1: errors of some 1e-6."""
    for name, wanted in expected._asdict().items():
        np.testing.assert_allclose(record[name].double().numpy(), wanted, rtol=1e-5, atol=1e-5)


def check_value_loss(record, row):
    """Huber's loss, token by token, from the values and returns that went in.

    The critic is updated once a step, over four micro-batches: so its loss is that of the values before the update,
    delta (|e| - delta / 2) beyond delta, e^2 / 2 within, averaged over the tokens of the whole batch.
    """
    values, returns, mask = runs.arrays(record, "values", "returns", "response_mask")
    error = np.abs(values - returns)[mask > 0]
    loss = np.where(error <= DELTA, error**2 / 2, DELTA * (error - DELTA / 2)).mean()
    assert row["critic/vf_loss"] == pytest.approx(loss, rel=1e-3)
    assert loss < 0.1 * (error**2 / 2).mean()  # verl's own, clipped, is at least that: not a number in common
    assert row["critic/loss"] == pytest.approx(loss, rel=1e-3)
    assert row["critic/rl_estimators/vf_linear_frac"] == pytest.approx((error > DELTA).mean(), abs=0.01)
    assert row["critic/rl_estimators/value_loss/huber"] == 1
    assert row["critic/vf_clipfrac"] == 0
    assert row["critic/grad_norm"] > 0


def check_updates(record, row):
    """What the workers' sums make of the step's updates: one of the critic, two of the actor."""
    values, returns, mask = runs.arrays(record, "values", "returns", "response_mask")
    values, returns = values[mask > 0], returns[mask > 0]
    explained = pytest.approx(1 - (returns - values).var() / returns.var(), rel=1e-3, abs=1e-3)
    assert row["rl_estimators/explained_variance_before"] == explained
    assert (
        row["rl_estimators/explained_variance_after"] == explained
    )  # before its own step, and there is but one
    assert "rl_estimators/value_clip_share" not in row
    low, mean, high = (row[f"rl_estimators/ratio_{which}"] for which in ("min", "mean", "max"))
    spread, size = row["rl_estimators/ratio_std"], row["rl_estimators/effective_sample_size"]
    assert low < 1 < high
    assert size == pytest.approx(mean**2 / (mean**2 + spread**2))
    assert 0 < row["rl_estimators/policy_kl"] < 1


def test_v1_with_a_preset_and_losses_over_it_on_two_workers(tmp_path, monkeypatch):
    """A dual clip at 1 binds wherever a bad token became likelier; verl's default of 3 hardly ever does."""
    records = runs.recorded(monkeypatch, tmp_path / "records")
    preset = [
        "+algorithm=rle_gae",
        "rl_estimators.value_loss.name=huber",
        f"+rl_estimators.value_loss.delta={DELTA}",
        "rl_estimators.policy_loss.clip_ratio_c=1.0",
    ]
    rows = runs.smoke().run(
        "rle_gae", steps=2, out=tmp_path / "out", overrides=[*SMALL, *preset, *TWO_WORKERS]
    )
    assert [row["step"] for row in rows] == [1, 2]
    for record, row in zip(records(), rows, strict=True):
        given = columns(record, "token_level_rewards", "values", "response_mask")
        check_advantages(record, definitions.gae(**given, lam=0.95))  # the preset's lambda
        check_value_loss(record, row)
        check_updates(record, row)
        assert row["actor/rl_estimators/policy_loss/ppo_clip"] == 1
        assert row["actor/pg_clipfrac_lower"] > 0.05
        assert row["actor/ppo_kl"] != 0
    assert rows[0]["critic/values/mean"] != rows[1]["critic/values/mean"]


def test_the_legacy_trainer_and_a_resume(tmp_path, monkeypatch):
    """With a critic that is not asked for, to have a value loss; one step more from the checkpoint.

    A clip range of 0 binds at about every second token that moved; verl's default of 0.2 at every fifteenth.
    """
    records = runs.recorded(monkeypatch, tmp_path / "records")
    legacy = [
        "trainer.use_v1=False",
        "critic.enable=True",
        *HUBER,
        "+rl_estimators.policy_loss.name=ppo_clip",
        "+rl_estimators.policy_loss.clip_ratio_low=0",
        "+rl_estimators.policy_loss.clip_ratio_high=0",
    ]

    def go(steps, *more):
        return runs.smoke().run(
            "reinforce_pp", steps=steps, out=tmp_path / "out", overrides=[*SMALL, *legacy, *more]
        )

    rows = go(2, "trainer.save_freq=2")
    steps = records()
    rows += go(1, "trainer.total_training_steps=3", "trainer.resume_mode=auto")
    steps += records()[:1]  # the new process numbers its records from the start
    assert [row["step"] for row in rows] == [1, 2, 3]
    for record, row in zip(steps, rows, strict=True):
        check_advantages(
            record, definitions.reinforce_pp(**columns(record, "token_level_rewards", "response_mask"))
        )
        check_value_loss(record, row)
        check_updates(record, row)
        assert row["actor/rl_estimators/policy_loss/ppo_clip"] == 1
        assert row["actor/pg_clipfrac"] > 0.2
