"""verl's real `main_ppo` with Ray on this machine's CPU, its numbers recomputed from what went in."""

import numpy as np
import pytest
import runs
from reference import definitions

from rl_estimators.diagnostics import DIAGNOSTICS

pytestmark = [pytest.mark.verl, pytest.mark.slow]


def agree(record, expected):
    """fp32 sums over a hundred numbers of about 1: errors of some 1e-6."""
    for name, wanted in expected._asdict().items():
        np.testing.assert_allclose(record[name].double().numpy(), wanted, rtol=1e-5, atol=1e-5)


OF_CRITICS = {"explained_variance_before", "explained_variance_after", "value_clip_share"}
OF_GROUPS = {f"{which}_group_share" for which in ("all_right", "all_wrong")}
OF_GROUPS |= {f"reward_std_{where}_groups" for where in ("within", "between")}


def diagnosed(row, record, without):
    """What a step's log says of its batch, recomputed; and all names are there, those of the workers' updates too."""
    names = {key.removeprefix("rl_estimators/") for key in row if key.startswith("rl_estimators/")}
    assert names & DIAGNOSTICS.keys() == DIAGNOSTICS.keys() - without
    assert not any("sums" in key for key in row)
    advantages, mask, scores = runs.arrays(record, "advantages", "response_mask", "token_level_scores")
    uids, valid = runs.uids(record), mask > 0
    moved = [np.abs(advantages[uids == uid][valid[uids == uid]]).max() > 0 for uid in {*uids}]
    expected = {
        "zero_advantage_token_share": (advantages[valid] == 0).mean(),
        "zero_advantage_prompt_share": 1 - np.mean(moved),
        "advantage_max": advantages[valid].max(),
        "reward_mean": scores.sum(-1).mean(),
    }
    if "all_wrong_group_share" not in without:
        groups = [scores[uids == uid].sum(-1) for uid in {*uids}]
        expected["all_wrong_group_share"] = np.mean([(group <= 0).all() for group in groups])
        expected["all_right_group_share"] = np.mean([(group >= 1 - 1e-6).all() for group in groups])
    for name, number in expected.items():
        assert row[f"rl_estimators/{name}"] == pytest.approx(number, rel=1e-5, abs=1e-6), name
    assert row["rl_estimators/ratio_min"] <= row["rl_estimators/ratio_mean"] <= row["rl_estimators/ratio_max"]


def test_reinforce_pp_learns(tmp_path, monkeypatch, capsys):
    """What `make smoke` runs, to the end: the reward rises, and each step is the definition's."""
    records = runs.recorded(monkeypatch, tmp_path / "records")
    assert runs.smoke().main(["--out", str(tmp_path / "out")]) == 0
    assert "The reward rose" in capsys.readouterr().out
    steps = records()
    assert len(steps) == runs.smoke().STEPS
    for record in steps:
        assert record["adv_estimator"] == "reinforce_pp"
        agree(record, definitions.reinforce_pp(*runs.arrays(record, "token_level_rewards", "response_mask")))


def test_rle_grpo_and_the_engines_log_probabilities(tmp_path, monkeypatch):
    """At temperature 0.8 the rollout engine's log-probabilities are the actor's own to 1e-3."""
    records = runs.recorded(monkeypatch, tmp_path / "records")
    rollout = [
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "actor_rollout_ref.rollout.temperature=0.8",
    ]
    rows = runs.smoke().run("rle_grpo", steps=2, out=tmp_path / "out", answers=4, overrides=rollout)
    assert all(row["rl_estimators/excluded_responses"] == 0 for row in rows)
    for row, record in zip(rows, records(), strict=True):
        diagnosed(row, record, without=OF_CRITICS)
        assert len({*record["uid"]}) == len(record["uid"]) // 4
        rewards, mask = runs.arrays(record, "token_level_rewards", "response_mask")
        agree(record, definitions.grpo(rewards, mask, runs.uids(record)))
        engine, actor = runs.arrays(record, "rollout_log_probs", "old_log_probs")
        assert np.abs(engine)[mask > 0].max() > 0.1
        assert np.abs(engine - actor)[mask > 0].max() < 1e-3


def test_rle_gae_gets_the_critics_values(tmp_path, monkeypatch):
    """Nothing asks for a critic but the estimator's signature; lambda comes from verl's configuration."""
    records = runs.recorded(monkeypatch, tmp_path / "records")
    rows = runs.smoke().run("rle_gae", steps=2, out=tmp_path / "out", overrides=["algorithm.lam=0.9"])
    assert all("critic/vf_loss" in row for row in rows)
    for row, record in zip(rows, records(), strict=True):
        diagnosed(row, record, without=OF_GROUPS)
        rewards, values, mask = runs.arrays(record, "token_level_rewards", "values", "response_mask")
        returns, values_of_tokens = runs.arrays(record, "returns")[0][mask > 0], values[mask > 0]
        explained = 1 - (returns - values_of_tokens).var() / returns.var()
        assert row["rl_estimators/explained_variance_before"] == pytest.approx(explained, rel=1e-4, abs=1e-4)
        assert np.abs(values[mask > 0]).max() > 0
        agree(record, definitions.gae(rewards, values, mask, lam=0.9))


def test_what_cannot_work_is_said_at_start(tmp_path):
    smoke = runs.smoke()
    with pytest.raises(
        smoke.SmokeError, match=r"algorithm.adv_estimator=rle_gae needs values .* does not provide"
    ):
        smoke.run("rle_gae", steps=1, out=tmp_path / "out", overrides=["critic.enable=False"])
    assert "Started a local Ray instance" not in (tmp_path / "out/verl.log").read_text()
