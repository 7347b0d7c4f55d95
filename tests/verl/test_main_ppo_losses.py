"""Two steps of verl's real `main_ppo` with a value loss and a policy loss of ours, in both of its trainers."""

import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXAMPLES = str(Path(__file__).parents[2] / "examples")
ANSWERS, DELTA = 32, 0.01
SMALL = [
    f"data.train_batch_size={ANSWERS}",
    f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={ANSWERS}",
    f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={ANSWERS}",
    # The actor is updated twice a step, so that its ratio leaves 1; the critic once, in four micro-batches.
    f"actor_rollout_ref.actor.ppo_mini_batch_size={ANSWERS // 2}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    f"critic.ppo_mini_batch_size={ANSWERS}",
    "critic.ppo_micro_batch_size_per_gpu=8",
]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    pytest.importorskip("verl")
    sys.path.insert(0, EXAMPLES)
    from digit_sort import smoke

    yield lambda estimator, overrides: smoke.run(
        estimator, steps=2, out=tmp_path_factory.mktemp("losses"), overrides=SMALL + overrides
    )
    sys.path.remove(EXAMPLES)


def check_huber(row):
    """What holds for Huber's loss with a tiny delta, and for neither of verl's: the loss is about delta |V - R|.

    Each token's loss is between delta (|e| - delta / 2) and delta |e|; by the triangle inequality the mean of |e| is at
    least the distance of the means. The critic's rewards are of the order 1, so half a square would be 10 times as much.
    """
    spread = max(
        row["critic/returns/max"] - row["critic/values/min"],
        row["critic/values/max"] - row["critic/returns/min"],
    )
    distance = abs(row["critic/returns/mean"] - row["critic/values/mean"])
    assert DELTA * (distance - DELTA / 2) * 0.99 <= row["critic/vf_loss"] <= DELTA * spread * 1.01
    assert row["critic/vf_loss"] == pytest.approx(row["critic/loss"], rel=1e-4)
    assert row["critic/rl_estimators/vf_linear_frac"] > 0.9
    assert row["critic/rl_estimators/value_loss/huber"] == 1
    assert row["critic/vf_clipfrac"] == 0
    assert row["critic/grad_norm"] > 0


def test_v1_with_a_preset_and_losses_over_it(train):
    """A dual clip at 1 binds wherever a bad token became likelier; verl's default of 3 hardly ever does."""
    rows = train(
        "rle_gae",
        [
            "+algorithm=rle_gae",
            "rl_estimators.value_loss.name=huber",
            f"+rl_estimators.value_loss.delta={DELTA}",
            "rl_estimators.policy_loss.clip_ratio_c=1.0",
        ],
    )
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        check_huber(row)
        assert row["actor/rl_estimators/policy_loss/ppo_clip"] == 1
        assert row["actor/pg_clipfrac_lower"] > 0.05
        assert row["actor/ppo_kl"] != 0
    assert rows[0]["critic/values/mean"] != rows[1]["critic/values/mean"]


def test_the_legacy_trainer(train):
    """With a critic that is not asked for, to have a value loss.

    A clip range of 0 binds at about every second token that moved; verl's default of 0.2 at every fifteenth.
    """
    rows = train(
        "reinforce_pp",
        [
            "trainer.use_v1=False",
            "critic.enable=True",
            "+rl_estimators.value_loss.name=huber",
            f"+rl_estimators.value_loss.delta={DELTA}",
            "+rl_estimators.policy_loss.name=ppo_clip",
            "+rl_estimators.policy_loss.clip_ratio_low=0",
            "+rl_estimators.policy_loss.clip_ratio_high=0",
        ],
    )
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        check_huber(row)
        assert row["actor/rl_estimators/policy_loss/ppo_clip"] == 1
        assert row["actor/pg_clipfrac"] > 0.2
