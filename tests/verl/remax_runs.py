"""Real runs of ReMax for tests: what was asked of the engine, and each step checked against it."""

import importlib
import json

import numpy as np
import pytest
import runs

PROMPTS, ANSWERS, VALIDATION = 8, 2, 4
SMALL = [
    f"data.train_batch_size={PROMPTS}",
    f"data.val_max_samples={VALIDATION}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.val_kwargs.temperature=0.5",  # tells these requests from the greedy ones
]


def digit_score(prompt, answer):
    """What the smoke task's own reward function gives."""
    task, reward = (importlib.import_module(f"digit_sort.{name}") for name in ("task", "reward"))
    return reward.compute_score("", answer, task.answer_of(prompt.removesuffix("=")))


class Run:
    """One folder for one or several runs of the smoke task, and all that they left behind.

    Args:
        modules: Loaded into verl's processes besides those that record.
        score: The reward of an answer, from the texts of prompt and answer.
    """

    def __init__(self, tmp_path, monkeypatch, *modules, score=digit_score):
        self.out, self.dumps, self.requests = (tmp_path / name for name in ("out", "dumps", "requests"))
        self.records = runs.recorded(monkeypatch, tmp_path / "records")
        self.score = score
        self.requests.mkdir()
        monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", ",".join(["recorder", "greedy_witness", *modules]))
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
        greedy = [(prompt, answer) for temperature, prompt, answer in self.asked() if temperature == 0]
        assert len({prompt for prompt, _ in greedy}) == len(greedy)
        return {prompt: self.score(prompt, answer) for prompt, answer in greedy}


def check_baselines(run, record, prompt_of):
    """Baselines from the engine's answers, advantages from the baselines; returns rewards and scores."""
    greedy = run.greedy_rewards()
    expected = [0.0 if uid.startswith("pad") else greedy[prompt_of[uid]] for uid in record["uid"]]
    rewards, mask, baselines, scores = runs.arrays(
        record, "token_level_rewards", "response_mask", "reward_baselines", "rm_scores"
    )
    np.testing.assert_array_equal(baselines, expected)
    to_go = np.cumsum((rewards * mask)[:, ::-1], axis=-1)[:, ::-1]
    advantages = (to_go - baselines[:, None]) * mask
    np.testing.assert_allclose(record["advantages"].numpy(), advantages, atol=1e-6)
    return rewards, scores


def check_step(run, record, step, row, answers=ANSWERS):
    """`check_baselines`, and the metrics of a step of one batch."""
    dump = [line for line in run.dumped(step) if not line["uid"].startswith("pad")]
    prompt_of = {line["uid"].split("_")[0]: line["input"] for line in dump}
    assert {line["uid"].split("_")[1] for line in dump} == {str(session) for session in range(answers)}
    for line in dump:
        assert line["score"] == pytest.approx(run.score(line["input"], line["output"]))
    rewards, scores = check_baselines(run, record, prompt_of)

    real = np.array([not uid.startswith("pad") for uid in record["uid"]])
    greedy = run.greedy_rewards()
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
