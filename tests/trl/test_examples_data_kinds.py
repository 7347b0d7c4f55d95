"""Kinds of data and models that TRL knows: tools, feedback of an environment, chat, LoRA, missing rewards."""

import re

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, ReinforcePPConfig, ReinforcePPTrainer  # noqa: E402


def keeping(cls):
    """The trainer, with the batches that it made in ``batches``."""

    class Keeping(cls):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            self.__dict__.setdefault("batches", []).append(batch)
            return batch

    return Keeping


def trained(run):
    assert min(run.column("grad_norm")) > 0
    assert all(tensor.isfinite().all() for tensor in run.weights.values())


def discounted_score(batch, scores, gamma):
    """The score times gamma for each token that the policy wrote after this one; 0 on what it did not write."""
    wanted = torch.zeros(batch["completion_mask"].shape)
    for row, (mask, tool) in enumerate(zip(batch["completion_mask"], batch["tool_mask"], strict=True)):
        written = [t for t in range(len(mask)) if mask[t] and tool[t]]
        for after, t in enumerate(reversed(written)):
            wanted[row, t] = scores[row] * gamma**after
    return wanted


# ------------------------------------------------------------------------------------------------------------- tools

CALL = "[sort {}]"
TOOL_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}"
    "[{{ call['function']['name'] }} {{ call['function']['arguments'] }}]{% endfor %}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
)


def sort(digits: str) -> str:
    """Sorts.

    Args:
        digits: What to sort.

    Returns:
        The digits, sorted.
    """
    return "".join(sorted(digits))


def tool_user(tokenizer):
    """A trainer whose model asks for the tool in every other completion, as if it had learnt to."""

    class ToolUser(keeping(EstimatorTrainer)):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            ids, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            texts = tokenizer.batch_decode(prompt_ids)
            for row in range(0, len(ids), 2):
                if texts[row].endswith("="):  # not after the tool has answered
                    call = CALL.format(texts[row][:4]) + tokenizer.eos_token
                    ids[row] = tokenizer(call)["input_ids"]
            return ids, log_probs

    return ToolUser


def parse(tokenizer):
    """What transformers reads off a response schema, for the one form of call there is here."""

    def parse_response(ids, *_, **__):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        call = re.fullmatch(r"\[(\w+) (\d+)\]", text)
        if call is None:
            return {"role": "assistant", "content": text}
        function = {"name": call[1], "arguments": {"digits": call[2]}}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        }

    return parse_response


def last_message(prompts, completions, **_):
    """More for the longer last message, so that all scores are above 0."""
    return [1.0 + len(messages[-1].get("content") or "") for messages in completions]


def test_tools(tiny, tmp_path, monkeypatch):
    """The tool's output is in the completion, has no advantage, and no token's discount counts it."""
    from transformers import AutoTokenizer

    # jmespath reads a response schema; parse() stands in for it
    monkeypatch.setattr("trl.trainer.grpo_trainer.is_jmespath_available", lambda: True)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template, tokenizer.response_schema = TOOL_TEMPLATE, {"type": "object"}
    tokenizer.parse_response = parse(tokenizer)
    fields = toy.settings(
        tmp_path, max_steps=2, max_completion_length=40, adv_estimator="reinforce", gamma=0.5
    )
    run = toy.train(
        tool_user(tokenizer),
        EstimatorConfig(**fields),
        tiny,
        chat=True,
        processing_class=tokenizer,
        tools=[sort],
        reward_funcs=last_message,
    )
    trained(run)
    assert run.column("tools/call_frequency") == [0.5, 0.5]
    assert run.column("tools/failure_frequency") == [0, 0]
    batch = run.trainer.batches[-1]
    for row in range(0, 8, 2):
        prompt = tokenizer.decode(batch["prompt_ids"][row], skip_special_tokens=True)
        masked = batch["completion_ids"][row][batch["tool_mask"][row] == 0]
        assert tokenizer.decode(masked) == "".join(sorted(prompt[:4]))
    scores = list(run.trainer._logs["rewards"]["last_message"])[-8:]
    torch.testing.assert_close(batch["advantages"], discounted_score(batch, scores, 0.5))


def rollout(tokenizer):
    """A turn of the policy, two tokens from the environment, another turn; without a model, to be short."""

    def rollout_func(prompts, trainer):
        first, second = (tokenizer(text)["input_ids"] for text in ("12", "34"))
        feedback = tokenizer("??")["input_ids"]
        count, end = len(prompts), [tokenizer.eos_token_id]
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [first + feedback + second + end for _ in range(count)],
            "logprobs": None,
            "env_mask": [[1, 1, 0, 0, 1, 1, 1] for _ in range(count)],
            "score": [float(row + 1) for row in range(count)],
        }

    return rollout_func


def the_score(prompts, completions, score, **_):
    return score


def test_feedback_of_an_environment(tiny, tmp_path):
    """``rollout_func`` with ``env_mask``: as tool output."""
    from transformers import AutoTokenizer

    fields = toy.settings(
        tmp_path, max_steps=2, adv_estimator="reinforce", gamma=0.5, max_completion_length=7
    )
    rollout_func = rollout(AutoTokenizer.from_pretrained(tiny))
    run = toy.train(
        keeping(EstimatorTrainer),
        EstimatorConfig(**fields),
        tiny,
        rollout_func=rollout_func,
        reward_funcs=the_score,
    )
    trained(run)
    batch = run.trainer.batches[-1]
    wanted = torch.tensor([0.5**4, 0.5**3, 0, 0, 0.5**2, 0.5, 1]) * torch.arange(1.0, 9.0)[:, None]
    torch.testing.assert_close(batch["advantages"], wanted)


# -------------------------------------------------------------------------------------------------------------- chat


def test_chat(tiny, tmp_path):
    """One completion a prompt, KL divergence in the reward: what our own named trainer does by default."""
    fields = toy.settings(tmp_path, max_steps=3, num_generations=1, beta=0.05)
    run = toy.train(ReinforcePPTrainer, ReinforcePPConfig(**fields), tiny, chat=True)
    trained(run)
    assert run.column("kl")[0] == 0
    assert run.column("kl")[-1] != 0


# -------------------------------------------------------------------------------------------------------------- LoRA


def test_lora(tiny, tmp_path):
    """Equal to TRL's own run; the reference is the model without its adapter; nothing but the adapter moves."""
    peft = pytest.importorskip("peft")
    fields = toy.settings(tmp_path, max_steps=4, beta=0.04)
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    theirs = toy.train(GRPOTrainer, GRPOConfig(**fields), tiny, peft_config=adapter)
    config = EstimatorConfig(**fields, adv_estimator_kwargs={"compat": "trl"})
    ours = toy.train(EstimatorTrainer, config, tiny, peft_config=adapter)
    toy.same(ours, theirs)
    trained(ours)
    assert max(ours.column("kl")) > 0


def test_lora_with_kl_in_reward(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config = ReinforcePPConfig(**toy.settings(tmp_path, max_steps=3, num_generations=1, beta=0.1))
    start = toy.weights(toy.make(ReinforcePPTrainer, config, tiny, peft_config=adapter))
    run = toy.train(ReinforcePPTrainer, config, tiny, peft_config=adapter)
    trained(run)
    moved = {name for name, tensor in run.weights.items() if not torch.equal(tensor, start[name])}
    assert moved
    assert all("lora_" in name for name in moved)


# --------------------------------------------------------------------------------------------------- missing rewards


@pytest.mark.parametrize("missing", [None, float("nan")], ids=str)
def test_completions_without_a_reward(tiny, tmp_path, missing):
    """They are left out: of the loss by an advantage of 0, and of the statistics of the others."""

    def some(prompts, completions, **_):
        return [missing if row % 4 == 0 else float(row) for row in range(len(completions))]

    fields = toy.settings(tmp_path, max_steps=1, adv_estimator="reinforce_pp_baseline")
    run = toy.train(keeping(EstimatorTrainer), EstimatorConfig(**fields), tiny, reward_funcs=some)
    trained(run)
    column = torch.tensor(list(run.trainer._logs["advantages"]))
    assert column[[0, 4]].tolist() == [0, 0]
    # rewards 1, 2, 3 and 5, 6, 7: -1, 0, 1 from their means, times the batch's scale
    assert column[1] < 0 < column[3]
    torch.testing.assert_close(column[1:4], column[5:8])
    torch.testing.assert_close(column[1], -column[3], rtol=0.2, atol=0)
    assert run.column("rl_estimators/excluded_responses") == []
    assert run.trainer.state.log_history[0]["rl_estimators/excluded_responses"] == 2


def test_no_completion_with_a_reward(tiny, tmp_path):
    """A batch that nobody scored moves nothing, and does not stop the run."""

    def nothing(prompts, completions, **_):
        return [None] * len(completions)

    fields = toy.settings(tmp_path, max_steps=2, adv_estimator="reinforce_pp", weight_decay=0.0)
    start = toy.weights(toy.make(EstimatorTrainer, EstimatorConfig(**fields), tiny))
    run = toy.train(EstimatorTrainer, EstimatorConfig(**fields), tiny, reward_funcs=nothing)
    assert run.column("grad_norm") == [0, 0]
    for name, tensor in start.items():
        assert torch.equal(run.weights[name], tensor)
