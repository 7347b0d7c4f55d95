"""ReMax in TRL: one greedy completion per prompt, whose reward is the baseline, and no other trace of it."""

import functools
import random

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import test_examples_data_kinds as kinds  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rl_estimators.errors import PatchError  # noqa: E402
from rl_estimators.trl import EstimatorConfig, ReMaxConfig, ReMaxTrainer, greedy, greedy_batch  # noqa: E402

PATHS = pytest.mark.parametrize("together", [True, False], ids=["one_batch", "afterwards"])
NO_KL = {"beta": 0.0, "kl_in_reward": False}


def config(folder, **fields):
    fields = {"max_steps": 1, "num_generations": 2, **NO_KL, **fields}
    return ReMaxConfig(**toy.settings(folder, **fields))


class Recorder:
    """The task's reward, and what it was asked."""

    __name__ = "recorder"

    def __init__(self, answer=None):
        self.calls, self.answer = [], answer

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.calls.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **columns})
        rewards = toy.reward(prompts, completions)
        return rewards if self.answer is None else self.answer(len(self.calls), rewards)


@functools.cache
def loaded(model):
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(model), network


def decode(model, prompt, length=6, **options):
    """The greedy completion of one prompt, by transformers alone: its ids up to the first end, and its text."""
    tokenizer, network = loaded(model)
    asked = tokenizer(prompt, return_tensors="pt")
    found = network.generate(
        **asked, do_sample=False, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id, **options
    )[0, asked["input_ids"].shape[1] :].tolist()
    if tokenizer.eos_token_id in found:
        found = found[: found.index(tokenizer.eos_token_id) + 1]
    return found, tokenizer.decode(found, skip_special_tokens=True)


def baseline_of(model, prompt):
    return toy.reward([prompt], [decode(model, prompt)[1]])[0]


def uneven_rows(count=16):
    """Prompts of two to six digits, so that batches are padded on the left."""
    rng = random.Random(1)
    return Dataset.from_dict(
        {"prompt": ["".join(rng.choices("0123456789", k=2 + k % 5)) + "=" for k in range(count)]}
    )


@PATHS
@pytest.mark.parametrize("generations", [1, 2])
def test_advantages_are_returns_minus_the_greedy_reward(tiny, tmp_path, generations, together):
    settings = config(tmp_path, num_generations=generations, greedy_with_samples=together)
    trainer = toy.train(ReMaxTrainer, settings, tiny).trainer
    logs = trainer._logs
    expected = [
        toy.reward([prompt], [completion])[0] - baseline_of(tiny, prompt)
        for prompt, completion in zip(logs["prompt"], logs["completion"], strict=True)
    ]
    assert len(set(expected)) > 1
    assert list(logs["advantages"]) == pytest.approx(expected, abs=1e-6)


@PATHS
def test_one_greedy_completion_per_prompt_and_batch(tiny, tmp_path, together):
    """Not again for the second pass over the batch; with the columns of the prompt's own row."""
    data = toy.rows()
    data = data.add_column("number", list(range(len(data))))
    reward = Recorder()
    passes = {"num_iterations": 2, "policy_loss": "importance_sampling"}  # the second pass is off-policy
    settings = config(tmp_path, max_steps=4, **passes, greedy_with_samples=together)
    toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward, train_dataset=data)
    assert [len(call["prompts"]) for call in reward.calls] == [8, 4, 8, 4]
    for samples, greedily in zip(reward.calls[::2], reward.calls[1::2], strict=True):
        assert greedily["prompts"] == samples["prompts"][::2]
        assert greedily["number"] == samples["number"][::2]
        assert [data[k]["prompt"] for k in greedily["number"]] == greedily["prompts"]
    assert reward.calls[1]["completions"] == [decode(tiny, p)[1] for p in reward.calls[1]["prompts"]]


@PATHS
@pytest.mark.parametrize("length", [6, 2])
def test_greedy_is_what_transformers_decodes_greedily(tiny, tmp_path, together, length):
    """Warpers of the samples do not touch it, a repetition penalty does; padding and ends are as ever."""
    reward = Recorder()
    warpers = {"temperature": 3.0, "top_k": 3, "top_p": 0.9, "min_p": 0.05}
    settings = config(
        tmp_path,
        **{"num_generations": 1, "per_device_train_batch_size": 16, "max_completion_length": length},
        **{"repetition_penalty": 1.7, "greedy_with_samples": together, **warpers},
    )
    toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward, train_dataset=uneven_rows())
    prompts = reward.calls[1]["prompts"]
    assert len({len(prompt) for prompt in prompts}) > 2
    penalised = [decode(tiny, prompt, length, repetition_penalty=1.7)[0] for prompt in prompts]
    assert reward.calls[1]["ids"] == penalised
    assert penalised != [decode(tiny, prompt, length)[0] for prompt in prompts]
    if length == 6:
        assert len({len(ids) for ids in penalised}) > 1


def test_the_likeliest_token_survives_every_warper():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    scores[4, 2] = scores[4, 5] = 9.0  # a tie: the first one, as with argmax
    found = greedy_batch.LikeliestOnly(3)(None, scores.clone())
    assert torch.equal(found[:3], scores[:3])
    for warper in (
        TemperatureLogitsWarper(0.3),
        TopKLogitsWarper(2),
        TopPLogitsWarper(0.5),
        MinPLogitsWarper(0.1),
    ):
        found = warper(None, found)
    chances = found[3:].softmax(-1)
    assert torch.equal(chances, torch.eye(7)[[int(scores[3].argmax()), 2]])


def test_samples_are_drawn_as_without_greedy_completions(tiny, tmp_path):
    """Decoded afterwards they draw no random numbers: in every step the samples, and all TRL logs of them, are those of
    a run without; the policy stands still, so that the estimators may differ.
    """

    def rewarding(prompts, completions, log_extra, log_metric, **_):
        log_extra("first", [text[:1] for text in completions])
        log_metric("asked", len(prompts))
        return toy.reward(prompts, completions)

    def run(**more):
        fields = {"max_steps": 3, "learning_rate": 0.0, **more}
        return toy.train(ReMaxTrainer, config(tmp_path, **fields), tiny, reward_funcs=rewarding)

    plain, remax = run(adv_estimator="reinforce"), run(greedy_with_samples=False)
    for name in ("prompt", "completion", "extra", "rewards"):
        assert remax.trainer._logs[name] == plain.trainer._logs[name]
    ours = ("loss", "train_loss", "grad_norm")
    for row, expected in zip(remax.logs, plain.logs, strict=True):
        assert {k: v for k, v in row.items() if k not in ours} == {
            k: v for k, v in expected.items() if k not in ours
        }
    assert remax.column("asked") == [8.0, 8.0, 8.0]
    assert len(set(remax.column("reward"))) > 1


def test_in_one_batch_samples_follow_the_policy(tiny, tmp_path):
    """Their first tokens come as often as the model says, within five standard deviations."""
    prompt, count = "4821=", 1024
    reward = Recorder()
    settings = config(
        tmp_path, num_generations=count, per_device_train_batch_size=count, max_completion_length=2
    )
    data = Dataset.from_dict({"prompt": [prompt] * count})
    toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward, train_dataset=data)
    tokenizer, network = loaded(tiny)
    chances = network(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1).detach()
    drawn = torch.tensor([ids[0] for ids in reward.calls[0]["ids"]]).bincount(minlength=len(chances)) / count
    assert (chances > 0.02).sum() > 3
    assert ((drawn - chances).abs() <= 5 * (chances * (1 - chances) / count).sqrt() + 1e-6).all()
    assert len(reward.calls[1]["ids"]) == 1


@PATHS
def test_tokens_and_lengths_tell_of_the_samples(tiny, tmp_path, together):
    reward = Recorder()
    settings = config(tmp_path, max_steps=2, greedy_with_samples=together)
    run = toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward)
    tokenizer, tokens = loaded(tiny)[0], 0
    for samples, logged in zip(reward.calls[::2], run.logs, strict=False):
        lengths = [len(ids) for ids in samples["ids"]]
        tokens += sum(lengths) + sum(len(ids) for ids in tokenizer(samples["prompts"])["input_ids"])
        assert logged["num_tokens"] == tokens
        assert logged["completions/mean_length"] == pytest.approx(sum(lengths) / len(lengths))
        rewards = toy.reward(samples["prompts"], samples["completions"])
        assert logged["reward"] == pytest.approx(sum(rewards) / len(rewards))


@PATHS
def test_metrics(tiny, tmp_path, together):
    reward = Recorder()
    settings = config(tmp_path, greedy_with_samples=together)
    trainer = toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward).trainer
    logged = next(row for row in trainer.state.log_history if "reward" in row)
    samples, greedily = (toy.reward(call["prompts"], call["completions"]) for call in reward.calls)
    means = [(a + b) / 2 for a, b in zip(samples[::2], samples[1::2], strict=True)]
    assert logged["rl_estimators/greedy_reward_mean"] == pytest.approx(sum(greedily) / 4)
    wins = [g > m for g, m in zip(greedily, means, strict=True)]
    assert logged["rl_estimators/greedy_wins"] == sum(wins) / 4
    assert logged["rl_estimators/greedy_excluded"] == 0


def test_a_tie_is_no_win(tiny, tmp_path):
    run = toy.train(
        ReMaxTrainer, config(tmp_path), tiny, reward_funcs=lambda prompts, **_: [0.5] * len(prompts)
    )
    logged = next(row for row in run.trainer.state.log_history if "reward" in row)
    assert logged["rl_estimators/greedy_wins"] == 0
    assert list(run.trainer._logs["advantages"]) == [0] * 8


@PATHS
def test_a_prompt_without_a_greedy_reward_is_left_out(tiny, tmp_path, together):
    reward = Recorder(lambda call, rewards: [None, *rewards[1:]] if call % 2 == 0 else rewards)
    settings = config(tmp_path, greedy_with_samples=together)
    trainer = toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward).trainer
    advantages = list(trainer._logs["advantages"])
    assert advantages[:2] == [0, 0]
    assert all(advantage == advantage for advantage in advantages)
    logged = next(row for row in trainer.state.log_history if "reward" in row)
    assert logged["rl_estimators/greedy_excluded"] == 1
    assert logged["rl_estimators/excluded_responses"] == 2
    greedily = toy.reward(reward.calls[1]["prompts"], reward.calls[1]["completions"])[1:]
    assert logged["rl_estimators/greedy_reward_mean"] == pytest.approx(sum(greedily) / 3)


@PATHS
def test_rewards_of_tokens_count_in_the_baseline(tiny, tmp_path, together):
    """Two functions with weights: the number of tokens, and the sum of the first token's id."""

    def each(completion_ids, **_):
        return [[1.0] * len(ids) for ids in completion_ids]

    def first(completion_ids, **_):
        return [[float(ids[0])] + [0.0] * (len(ids) - 1) for ids in completion_ids]

    reward = Recorder()
    settings = config(tmp_path, greedy_with_samples=together, token_reward_weights=[0.5, -0.25])
    more = {"reward_funcs": reward, "token_reward_funcs": [each, first]}
    trainer = toy.make(ReMaxTrainer, settings, tiny, **more)
    found = watch(trainer)
    trainer.train()
    call = reward.calls[1]
    expected = [
        score + 0.5 * len(ids) - 0.25 * ids[0]
        for score, ids in zip(toy.reward(call["prompts"], call["completions"]), call["ids"], strict=True)
    ]
    assert found[0][::2].tolist() == pytest.approx(expected)
    logged = next(row for row in trainer.state.log_history if "reward" in row)
    assert logged["rl_estimators/greedy_reward_mean"] == pytest.approx(sum(expected) / 4)
    samples = reward.calls[0]
    sampled = [
        score + 0.5 * len(ids) - 0.25 * ids[0]
        for score, ids in zip(
            toy.reward(samples["prompts"], samples["completions"]), samples["ids"], strict=True
        )
    ]
    means = [(a + b) / 2 for a, b in zip(sampled[::2], sampled[1::2], strict=True)]
    wins = [g > m + 1e-6 for g, m in zip(expected, means, strict=True)]
    assert logged["rl_estimators/greedy_wins"] == sum(wins) / 4


def watch(trainer):
    """The baselines that the trainer's estimator gets, batch by batch."""
    found, original = [], trainer._generate_and_score_completions

    def watching(inputs):
        known = greedy.baselines

        def baselines(*args):
            found.append(known(*args))
            return found[-1]

        greedy.baselines = baselines
        try:
            return original(inputs)
        finally:
            greedy.baselines = known

    trainer._generate_and_score_completions = watching
    return found


def test_the_kl_divergence_is_charged_to_samples_alone(tiny, tmp_path):
    settings = config(tmp_path, beta=5.0, kl_in_reward=True, max_steps=3, learning_rate=1e-2)
    reward = Recorder()
    trainer = toy.make(ReMaxTrainer, settings, tiny, reward_funcs=reward)
    found = watch(trainer)
    trainer.train()
    call = reward.calls[-1]
    expected = toy.reward(call["prompts"], call["completions"])
    assert found[-1][::2].tolist() == pytest.approx(expected)
    assert found[-1][1::2].tolist() == pytest.approx(expected)
    assert abs(next(row["kl"] for row in trainer.state.log_history[::-1] if "kl" in row)) > 0.01


def test_evaluation(tiny, tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    settings = config(tmp_path, num_generations_eval=4, **fields)
    reward = Recorder()
    trainer = toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward).trainer
    logged = next(row for row in trainer.state.log_history if "eval_reward" in row)
    assert logged["eval_rl_estimators/greedy_excluded"] == 0
    assert 0 <= logged["eval_rl_estimators/greedy_wins"] <= 1
    assert [len(call["prompts"]) for call in reward.calls] == [8, 4] + [8, 2] * 4
    assert reward.calls[3]["prompts"] == reward.calls[2]["prompts"][::4]


@PATHS
def test_messages(tiny, tmp_path, together):
    reward = Recorder()
    settings = config(tmp_path, greedy_with_samples=together)
    trainer = toy.train(ReMaxTrainer, settings, tiny, reward_funcs=reward, chat=True).trainer
    assert [len(call["prompts"]) for call in reward.calls] == [8, 4]
    samples, greedily = (toy.reward(call["prompts"], call["completions"]) for call in reward.calls)
    expected = [score - greedily[row // 2] for row, score in enumerate(samples)]
    assert list(trainer._logs["advantages"]) == pytest.approx(expected, abs=1e-6)


def test_tools(tiny, tmp_path, monkeypatch):
    """The greedy completion calls them, too, and is scored by what comes of it; TRL counts the samples' calls."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.is_jmespath_available", lambda: True)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template, tokenizer.response_schema = kinds.TOOL_TEMPLATE, {"type": "object"}
    tokenizer.parse_response = kinds.parse(tokenizer)
    scored = []

    def reward(prompts, completions, **_):
        scored.append((prompts, completions))
        return kinds.last_message(prompts, completions)

    fields = {"max_steps": 1, "max_completion_length": 40, "num_generations": 2, "adv_estimator": "remax"}
    run = toy.train(
        kinds.tool_user(tokenizer),
        EstimatorConfig(**toy.settings(tmp_path, **fields)),
        tiny,
        **{"chat": True, "processing_class": tokenizer, "tools": [kinds.sort], "reward_funcs": reward},
    )
    (prompts, samples), (asked, greedily) = scored
    assert asked == prompts[::2]
    assert [[m["role"] for m in messages] for messages in greedily[::2]] == [
        ["assistant", "tool", "assistant"]
    ] * 2
    assert [len(messages) for messages in greedily[1::2]] == [1, 1]
    assert run.column("tools/call_frequency") == [0.5]
    given, baselines = kinds.last_message(None, samples), kinds.last_message(None, greedily)
    expected = [score - baselines[row // 2] for row, score in enumerate(given)]
    assert len(set(expected)) > 1
    assert list(run.trainer._logs["advantages"]) == pytest.approx(expected)


def test_an_adapter(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    reward = Recorder()
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    toy.train(ReMaxTrainer, config(tmp_path), tiny, reward_funcs=reward, peft_config=adapter)
    assert [len(call["prompts"]) for call in reward.calls] == [8, 4]
    assert reward.calls[1]["completions"] == [decode(tiny, p)[1] for p in reward.calls[1]["prompts"]]


@PATHS
def test_a_failing_reward_function_leaves_nothing_behind(tiny, tmp_path, together):
    def fail_greedily(call, rewards):
        if call == 2:
            raise RuntimeError("the judge is out")
        return rewards

    settings = config(tmp_path, greedy_with_samples=together)
    trainer = toy.make(ReMaxTrainer, settings, tiny, reward_funcs=Recorder(fail_greedily))
    generation, logged = trainer.generation_config, trainer._metrics
    with pytest.raises(RuntimeError, match="the judge is out"):
        trainer.train()
    assert trainer.generation_config is generation
    assert generation.do_sample
    assert (trainer.num_generations, trainer.num_generations_eval) == (2, 2)
    assert trainer._metrics is logged
    assert len(logged["train"]["completions/mean_length"]) == 1
    assert trainer._pending_extra_logs == trainer._pending_metrics == {}
    assert "generate" not in vars(trainer.accelerator.unwrap_model(trainer.model))
    trainer.train()  # the next call is the third


class Engine:
    """TRL's wrapper of vLLM with the attributes it has in TRL 1.12 to 1.16, over the tiny model."""

    def __init__(self, model):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.temperature, self.top_p, self.top_k, self.min_p = 1.0, 0.99, 12, 0.001
        self.repetition_penalty, self.max_completion_length = 1.0, 6
        self.generation_kwargs = {"temperature": 1.3, "stop": "x"}
        self.seen = []

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler=None):
        sampling = {n: getattr(self, n) for n in ("temperature", "top_p", "top_k", "min_p")}
        self.seen.append(sampling | self.generation_kwargs | {"n": num_generations, "rows": len(prompts)})
        greedily = (sampling | self.generation_kwargs)["temperature"] == 0
        found = []
        for ids in prompts:
            out = self.model.generate(
                input_ids=torch.tensor([ids]), do_sample=not greedily, max_new_tokens=6, pad_token_id=0
            )[0, len(ids) :].tolist()
            end = self.tokenizer.eos_token_id
            found.append(out[: out.index(end) + 1] if end in out else out)
        return prompts, found, [[[-1.0] for _ in ids] for ids in found], None


def test_vllm(tiny, tmp_path):
    reward = Recorder()
    settings = config(tmp_path)
    trainer = toy.make(ReMaxTrainer, settings, tiny, reward_funcs=reward)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(tiny), -1
    trainer.vllm_importance_sampling_correction = False
    before = vars(trainer.vllm_generation).copy()
    trainer.train()
    engine = trainer.vllm_generation
    assert engine.seen == [
        {"temperature": 1.3, "top_p": 0.99, "top_k": 12, "min_p": 0.001, "stop": "x", "n": 2, "rows": 8},
        {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": None, "stop": "x", "n": 1, "rows": 4},
    ]
    assert vars(engine) == before
    prompts = reward.calls[1]["prompts"]
    assert reward.calls[1]["completions"] == [decode(tiny, prompt)[1] for prompt in prompts]


def test_an_engine_that_changed_is_named():
    class Changed:
        temperature, top_k, min_p, generation_kwargs = 1.0, 0, None, {}

    with pytest.raises(PatchError, match=r"TRL's Changed has no top_p any more.*Use use_vllm=False"):
        greedy.check_engine(Changed())


def test_trl_keeps_the_engine_as_reviewed():
    """Its sampling parameters are attributes that it reads at each call."""
    import inspect

    from trl.generation.vllm_generation import VLLMGeneration

    made, asked = inspect.getsource(VLLMGeneration.__init__), inspect.getsource(VLLMGeneration.generate)
    for name in (*greedy._ENGINE, "generation_kwargs"):
        assert f"self.{name} = " in made
        assert f"self.{name}" in asked


@pytest.mark.parametrize(
    "generated", [([], [[1]], None, ["a"]), ([], [[1], [2]], None, ["a"], None, {}, None, [])]
)
def test_another_result_of_generate_is_refused(generated):
    with pytest.raises(
        PatchError, match=r"_generate returned something else than reviewed: .* each of 1 prompts"
    ):
        greedy._read(generated, 1)


def test_defaults_are_the_papers():
    settings = ReMaxConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none")
    assert (settings.num_generations, settings.num_iterations, settings.policy_loss) == (1, 1, "reinforce")
    assert (settings.beta, settings.kl_in_reward, settings.kl_penalty) == (0.05, True, "k1")
    assert settings.gamma is None  # the estimator's: 1
    assert settings.loss_agg_mode is None  # the policy loss's mean over tokens
    assert settings.learning_rate == 1e-6


@pytest.fixture(scope="module")
def half_learnt(tmp_path_factory):
    """The smoke task's model as the example starts from it."""
    folder = tmp_path_factory.mktemp("half_learnt")
    toy.digit_sort("model").build(folder, 0)
    return folder


def test_it_learns(half_learnt, tmp_path):
    settings = ReMaxConfig(
        **toy.settings(
            tmp_path,
            **{"max_steps": 40, "num_generations": 1, "per_device_train_batch_size": 128},
            lr_scheduler_type="constant",
        )
    )
    run = toy.train(ReMaxTrainer, settings, half_learnt, train_dataset=toy.rows(2048))
    rewards = run.column("reward")
    assert len(rewards) == 40
    assert sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5 >= 0.10
