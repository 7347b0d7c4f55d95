"""ReMax in verl's real `main_ppo`: what was asked of the engine, what went in and what came out."""

import importlib
import json
from collections import Counter

import numpy as np
import pytest
import runs

pytestmark = [pytest.mark.verl, pytest.mark.slow]

PROMPTS, ANSWERS, VALIDATION = 8, 2, 4
SMALL = [
    f"data.train_batch_size={PROMPTS}",
    f"data.val_max_samples={VALIDATION}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.val_kwargs.temperature=0.5",  # tells these requests from the greedy ones
]


class Run:
    """One folder for one or several runs of the smoke task, and all that they left behind."""

    def __init__(self, tmp_path, monkeypatch):
        self.out, self.dumps, self.requests = (tmp_path / name for name in ("out", "dumps", "requests"))
        self.records = runs.recorded(monkeypatch, tmp_path / "records")
        self.requests.mkdir()
        monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "recorder,greedy_witness")
        monkeypatch.setenv("RLE_TEST_REQUESTS", str(self.requests))

    def go(self, estimator, steps, *overrides, answers=ANSWERS):
        dump = f"trainer.rollout_data_dir={self.dumps}"
        return runs.smoke().run(
            estimator, steps=steps, out=self.out, answers=answers, overrides=[*SMALL, dump, *overrides]
        )

    def asked(self):
        """Temperature, prompt and answer of each request."""
        path = self.out / "model"
        tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(path)
        lines = [line for file in self.requests.glob("*.jsonl") for line in file.read_text().splitlines()]
        requests = [json.loads(line) for line in lines]
        return [
            (temperature, *(tokenizer.decode(ids, skip_special_tokens=True) for ids in texts))
            for temperature, *texts in requests
        ]

    def dumped(self, step):
        """verl's own dump of a step's rollouts."""
        lines = (self.dumps / f"{step}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def greedy_rewards(self):
        """By prompt: the reward of what the engine answered greedily, computed here."""
        task, reward = (importlib.import_module(f"digit_sort.{name}") for name in ("task", "reward"))
        greedy = [(prompt, answer) for temperature, prompt, answer in self.asked() if temperature == 0]
        assert len({prompt for prompt, _ in greedy}) == len(greedy)
        return {
            prompt: reward.compute_score("", answer, task.answer_of(prompt.removesuffix("=")))
            for prompt, answer in greedy
        }


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


def check_step(run, record, step, row):
    """Baselines from the engine's answers, advantages from the baselines, metrics from both."""
    dump = [line for line in run.dumped(step) if not line["uid"].startswith("pad")]
    prompt_of = {line["uid"].split("_")[0]: line["input"] for line in dump}
    assert {line["uid"].split("_")[1] for line in dump} <= {str(session) for session in range(ANSWERS)}
    real = np.array([not uid.startswith("pad") for uid in record["uid"]])
    greedy = run.greedy_rewards()
    expected = [greedy[prompt_of[uid]] if is_real else 0.0
                for uid, is_real in zip(record["uid"], real, strict=True)]  # fmt: skip
    rewards, mask, baselines, scores = runs.arrays(
        record, "token_level_rewards", "response_mask", "reward_baselines", "rm_scores"
    )
    assert baselines.tolist() == expected
    to_go = np.cumsum((rewards * mask)[:, ::-1], axis=-1)[:, ::-1]
    advantages = (to_go - baselines[:, None]) * mask
    np.testing.assert_allclose(record["advantages"].numpy(), advantages, atol=1e-6)

    sampled = {uid: [] for uid in prompt_of}
    for uid, score, is_real in zip(record["uid"], scores.sum(-1), real, strict=True):
        if is_real:
            sampled[uid].append(score)
    wins = [greedy[prompt_of[uid]] > np.mean(own) for uid, own in sampled.items()]
    assert row["rl_estimators/greedy_wins"] == pytest.approx(np.mean(wins))
    assert row["rl_estimators/greedy_reward_mean"] == pytest.approx(
        np.mean([greedy[p] for p in prompt_of.values()])
    )
    assert row["critic/score/mean"] == pytest.approx(scores.sum(-1)[real].mean())
    return rewards, scores


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
    for record, row in zip(run.records(), rows, strict=True):
        rewards, mask, baselines = runs.arrays(
            record, "token_level_rewards", "response_mask", "reward_baselines"
        )
        to_go = np.cumsum((rewards * mask)[:, ::-1], axis=-1)[:, ::-1]
        np.testing.assert_allclose(
            record["advantages"].numpy(), (to_go - baselines[:, None]) * mask, atol=1e-6
        )
        assert len(record["uid"]) == PROMPTS * ANSWERS
        assert not [uid for uid in record["uid"] if uid.startswith("pad")]  # the failed prompt was replaced
        assert row["rl_estimators/greedy_reward_mean"] == pytest.approx(np.mean(baselines))
    assert sum(row["rl_estimators/greedy_failed"] for row in rows) == 1
    assert sum(row.get("training/rollout_failure/evicted_samples", 0) for row in rows) == 1
