"""verl's discriminative path without and with the field that the agent loop reads."""

import asyncio
import types

import pytest

pytestmark = pytest.mark.verl


@pytest.fixture
def reward_loop():
    return pytest.importorskip("verl.experimental.reward_loop.reward_loop")


def ask(reward_loop, method, payload):
    """Run ``method`` of a worker whose reward model answers ``payload``."""

    async def preprocess(data):
        return "text"

    async def post(payloads, endpoint):
        return payload

    model = types.SimpleNamespace(rollout=types.SimpleNamespace(name="vllm"), model_path="model")
    worker = types.SimpleNamespace(
        _preprocess_reward_inputs=preprocess,
        _post_request=post,
        config=types.SimpleNamespace(reward=types.SimpleNamespace(reward_model=model)),
    )
    return asyncio.run(method(worker, None))


def test_the_field_is_there_and_the_score_is_untouched(reward_loop):
    answer = {"data": [{"probs": [0.25, 0.75]}]}
    patched = reward_loop.RewardLoopWorker.compute_score_disrm
    assert ask(reward_loop, patched, answer) == {"reward_score": 0.75, "reward_extra_info": {}}
    assert ask(reward_loop, patched.__wrapped__, answer) == {"reward_score": 0.75}  # else the hook can go
