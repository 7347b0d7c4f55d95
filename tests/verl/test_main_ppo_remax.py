"""ReMax in verl's real `main_ppo`: what was asked of the engine, what went in and what came out."""

from collections import Counter

import numpy as np
import pytest
from remax_runs import ANSWERS, PROMPTS, VALIDATION, Run, check_baselines, check_step

pytestmark = [pytest.mark.verl, pytest.mark.slow]


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


def test_rle_remax_with_kl_validation_and_a_resume(run):
    rows = run.go(
        "rle_remax", 2, "trainer.val_before_train=True", "trainer.test_freq=1", "trainer.save_freq=2"
    )
    records = run.records()
    # One step more, from the checkpoint. The new process numbers its records from the start.
    rows += run.go("rle_remax", 1, "trainer.total_training_steps=3", "trainer.resume_mode=auto")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert Counter(temperature for temperature, *_ in run.asked()) == {
        0: 3 * PROMPTS,
        1.0: 3 * PROMPTS * ANSWERS,
        0.5: 3 * VALIDATION,
    }
    assert (run.out / "checkpoints/global_step_2").is_dir()
    records += run.records()[:1]
    for step, (record, row) in enumerate(zip(records, rows, strict=True), start=1):
        rewards, scores = check_step(run, record, step, row)
        assert len(run.dumped(step)) == len(record["uid"]) == PROMPTS * ANSWERS
        tokens = sum(len(line["input"]) for line in run.dumped(step)) + record["response_mask"].sum()
        assert row["perf/total_num_tokens"] == tokens  # of the samples
        assert row["rl_estimators/greedy_failed"] == row["rl_estimators/excluded_responses"] == 0
    assert not np.array_equal(rewards, scores)  # the last step's KL penalty


def test_verls_remax_on_two_workers_survives_a_failed_greedy_rollout(run):
    (run.requests / "fail").touch()
    workers = ["trainer.n_gpus_per_node=2", "++ray_kwargs.ray_init.num_gpus=2"]
    rows = run.go("remax", 2, *workers)
    first, second = run.records()
    assert first["adv_estimator"] == second["adv_estimator"] == "remax"
    for step, (record, row) in enumerate(zip((first, second), rows, strict=True), start=1):
        check_step(run, record, step, row)
    assert [row["rl_estimators/greedy_failed"] for row in rows] == [1, 0]
    assert [len(run.dumped(step)) for step in (1, 2)] == [PROMPTS * ANSWERS] * 2  # filled up with empty rows
    assert len([uid for uid in first["uid"] if uid.startswith("pad")]) == ANSWERS
    log = (run.out / "verl.log").read_text()
    assert "is dropped, as its greedy rollout failed" in log
    assert "RuntimeError: made to fail by a test" in log


def test_rle_remax_in_the_asynchronous_trainer(run):
    (run.requests / "fail").touch()
    rows = run.go("rle_remax", 2, "trainer.v1.trainer_mode=colocate_async")
    for step, (record, row) in enumerate(zip(run.records(), rows, strict=True), start=1):
        check_step(run, record, step, row)
        assert len(record["uid"]) == PROMPTS * ANSWERS
        assert not [uid for uid in record["uid"] if uid.startswith("pad")]  # the failed prompt was replaced
    assert sum(row["rl_estimators/greedy_failed"] for row in rows) == 1
    assert sum(row.get("training/rollout_failure/evicted_samples", 0) for row in rows) == 1


def test_rle_remax_where_the_rollout_has_devices_of_its_own(run):
    """verl's fully asynchronous trainer, whose steps have several batches; `weights_by_ray` stands in for NCCL."""
    mode = [
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // 2}",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=ray",
        "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=weights_by_ray",
        "++ray_kwargs.ray_init.num_gpus=2",
    ]
    (run.requests / "fail").touch()
    rows = run.go("rle_remax", 2, *mode)
    records = run.records()
    assert len(records) == 2 * len(rows)
    for step, row in enumerate(rows, start=1):
        prompt_of = {line["uid"].split("_")[0]: line["input"] for line in run.dumped(step)}
        assert len(prompt_of) == PROMPTS  # the failed prompt was replaced
        for record in records[2 * step - 2 : 2 * step]:
            assert len(record["uid"]) == PROMPTS * ANSWERS // 2
            check_baselines(run, record, prompt_of)
        greedy = run.greedy_rewards()
        mean = np.mean([greedy[prompt] for prompt in prompt_of.values()])
        assert row["rl_estimators/greedy_reward_mean"] == pytest.approx(mean)
    assert sum(row["rl_estimators/greedy_failed"] for row in rows) == 1
