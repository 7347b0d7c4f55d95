"""ReMax in verl's real `main_ppo` where a reward model gives the reward.

Real: verl's v1 trainer, reward model manager, router, reward loop workers, resource pools, waking and putting to
sleep, verl's discriminative path; the actor, its training, our rollout engine. A stand-in: the reward model's server
behind the router, `stand_in_replica`, as there is no vLLM here.
"""

import importlib
import json
from collections import Counter

import pytest
from remax_runs import ANSWERS, PROMPTS, VALIDATION, Run, check_step

pytestmark = [pytest.mark.verl, pytest.mark.slow]

REWARD_MODEL = [
    "reward.reward_model.enable=True",
    "reward.reward_model.model_path=${actor_rollout_ref.model.path}",  # for its tokenizer
    "reward.reward_model.rollout.name=vllm",
    "reward.reward_model.rollout.tensor_model_parallel_size=1",
    "reward.custom_reward_function.path=null",  # verl itself asks the reward model
]
SEPARATE = [
    *REWARD_MODEL,
    "reward.reward_model.enable_resource_pool=True",
    "reward.reward_model.n_gpus_per_node=1",
    "reward.reward_model.nnodes=1",
    "reward.reward_model.rollout.free_cache_engine=False",  # verl does not wake it up again
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    opinion = importlib.import_module("stand_in_reward_model").opinion
    return Run(tmp_path, monkeypatch, "stand_in_reward_model", score=opinion)


def events(run):
    """What was done to the reward model, in order, runs of scoring as their lengths."""
    lines = (run.requests / "reward_model.log").read_text().splitlines()
    kinds = [json.loads(line)[0] for line in lines]
    found = []
    for kind in kinds:
        if kind != "score":
            found.append(kind)
        elif found and isinstance(found[-1], int):
            found[-1] += 1
        else:
            found.append(1)
    return found


def test_a_colocated_reward_model_scores_the_greedy_responses_with_the_samples(run):
    """One greedy rollout fails, so the first batch is a prompt short. Validation is scored without greedy ones."""
    (run.requests / "fail").touch()
    rows = run.go("rle_remax", 2, *REWARD_MODEL, "trainer.test_freq=2")
    for step, (record, row) in enumerate(zip(run.records(), rows, strict=True), start=1):
        check_step(run, record, step, row)
    assert [row["rl_estimators/greedy_failed"] for row in rows] == [1, 0]
    assert [len(run.dumped(step)) for step in (1, 2)] == [PROMPTS * ANSWERS] * 2  # filled up with empty rows
    assert Counter(temperature for temperature, *_ in run.asked())[0] == 2 * PROMPTS - 1
    assert events(run) == [
        "sleep",
        *("wake_up", (PROMPTS - 1) * (ANSWERS + 1), "sleep"),
        *("wake_up", PROMPTS * (ANSWERS + 1), "sleep"),
        *("wake_up", VALIDATION, "sleep"),
    ]


def test_a_separate_reward_model_and_one_sample_for_each_prompt(run):
    two = "++ray_kwargs.ray_init.num_gpus=2"
    rows = run.go("remax", 2, *SEPARATE, two, answers=1)
    for step, (record, row) in enumerate(zip(run.records(), rows, strict=True), start=1):
        check_step(run, record, step, row, answers=1)
        assert row["rl_estimators/greedy_failed"] == 0
    assert Counter(temperature for temperature, *_ in run.asked()) == {0: 2 * PROMPTS, 1.0: 2 * PROMPTS}
    assert events(run) == [2 * PROMPTS * (1 + 1)]
