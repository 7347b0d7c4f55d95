"""The KL divergence charged to the rewards: which, by how much, and steered to a target."""

import json

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.trl import ReinforcePPConfig, ReinforcePPTrainer, advantages  # noqa: E402

TARGET, HORIZON = 0.01, 100.0


def config(folder, **fields):
    return ReinforcePPConfig(**toy.settings(folder, num_generations=1, max_steps=4, **fields))


def steered(rows, beta):
    """The factors of a run by the definition, from the divergences that it logged: the factor of each batch."""
    factors = [beta]
    for row in rows:
        error = min(max(row["kl"] / TARGET - 1, -0.2), 0.2)
        factors.append(factors[-1] * (1 + error * 8 / HORIZON))  # 8 completions a batch
    return factors


def test_the_factor_is_steered_and_goes_on_where_it_was(tiny, tmp_path):
    fields = {
        "beta": 0.05,
        "kl_target": TARGET,
        "kl_horizon": HORIZON,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = toy.make(ReinforcePPTrainer, config(tmp_path, **fields), tiny)
    whole.train()
    rows = [row for row in whole.state.log_history if "kl" in row]
    factors = steered(rows, 0.05)
    assert [row["rl_estimators/kl_coef"] for row in rows] == pytest.approx(factors[:-1], rel=1e-6)
    assert whole.kl_controller.value == pytest.approx(factors[-1], rel=1e-6)
    assert len(set(factors)) == 5
    saved = json.loads((tmp_path / "checkpoint-2" / "kl_controller.json").read_text())
    assert saved["value"] == pytest.approx(factors[2], rel=1e-6)

    resumed = toy.make(ReinforcePPTrainer, config(tmp_path / "again", **fields), tiny)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.kl_controller.value == whole.kl_controller.value
    for name, tensor in toy.weights(whole).items():
        assert torch.equal(toy.weights(resumed)[name], tensor), name


def test_each_token_pays_for_its_own_divergence_and_the_loss_does_not_charge_it_again(
    tiny, tmp_path, monkeypatch
):
    """beta * (log pi - log ref) off each token's reward, the score on the last; recomputed from TRL's batch."""
    seen = []

    def estimate(name, **given):
        seen.append(given)
        return original(name, **given)

    original = advantages.estimate
    monkeypatch.setattr(advantages, "estimate", estimate)
    trainer = toy.make(ReinforcePPTrainer, config(tmp_path, beta=0.5, kl_penalty="k1"), tiny)
    kept = []
    compute = trainer._compute_loss
    monkeypatch.setattr(
        trainer,
        "_compute_loss",
        lambda model, batch: kept.append((trainer.beta, batch)) or compute(model, batch),
    )
    trainer.train()
    given = seen[-1]
    assert {beta for beta, _ in kept} == {0.5}
    mask = given["response_mask"]
    assert given["token_level_rewards"].shape == mask.shape
    _, batch = kept[-1]
    divergence = batch["old_per_token_logps"] - batch["ref_per_token_logps"]
    charged = torch.where(batch["completion_mask"].bool(), -0.5 * divergence, 0).sum(-1)
    # TRL shuffles the batch between the two, so they are compared as sets of sums; a score is 0, 1/8, ..., 1
    sums = given["token_level_rewards"].sum(-1)
    scores = (sums[:, None] - charged[None, :]) * 8
    near = (scores - scores.round()).abs().amin(-1)
    assert divergence.abs().max() > 1e-3
    assert near.max() < 1e-4
    assert next(row["kl"] for row in toy.logged(trainer) if "kl" in row) == pytest.approx(0, abs=1e-6)


def test_a_target_without_the_divergence_in_the_reward_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"kl_target=0\.1 steers the KL divergence in the reward"):
        config(tmp_path, kl_in_reward=False, kl_target=0.1)


def test_nothing_to_charge_is_refused(tmp_path):
    with pytest.raises(InputError, match="kl_in_reward=True with beta=0 charges nothing"):
        config(tmp_path, beta=0.0)
