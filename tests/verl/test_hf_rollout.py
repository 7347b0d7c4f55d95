"""The engine without Ray, on a tiny Qwen2 made on the spot."""

import asyncio
import dataclasses
import types
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

with warnings.catch_warnings():  # verl warns of every training engine it does not find
    warnings.simplefilter("ignore")
    import transformers
    from verl.workers.config import HFModelConfig, RolloutConfig
    from verl.workers.config.model import MtpConfig
    from verl.workers.config.rollout import CheckpointEngineConfig, PrometheusConfig
    from verl.workers.rollout import base as rollout_base
    from verl.workers.rollout import replica as rollout_replica

    from rl_estimators.verl import rollout
    from rl_estimators.verl.rollout import adapter as adapter_module
    from rl_estimators.verl.rollout import generation, options, replica, request, server
    from rl_estimators.verl.rollout.adapter import HFAdapter
    from rl_estimators.verl.rollout.server import HFServer

from rl_estimators.errors import EstimatorError, InputError
from rl_estimators.verl.platform import PlatformCPU

pytestmark = pytest.mark.verl

RESPONSE_LENGTH, PROMPT_LENGTH, POSITIONS = 12, 8, 64
GREEDY = {"temperature": 0, "logprobs": True}
SAMPLED = {"temperature": 0.7, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
PROMPTS = [[7, 3, 9], [40, 41, 42, 43, 44, 45, 46], [100], [5, 5, 200, 17, 3]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A random Qwen2 of two layers with a byte-level tokenizer, one token per byte."""
    path = tmp_path_factory.mktemp("qwen2")
    vocabulary = ["<|endoftext|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=len(vocabulary) + 6,  # a tail of ids without tokens, as padded vocabularies have
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            initializer_range=0.5,  # far from uniform, so that wrong logits show
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    model.save_pretrained(path)
    return path


@pytest.fixture
def make(checkpoint, monkeypatch):
    """Makes servers, replicas' configs and so on; the platform is the CPU whatever this process found."""
    monkeypatch.setattr(server, "get_platform", PlatformCPU)

    def configs(model=(), **settings):
        known = {
            "name": "hf",
            "tensor_model_parallel_size": 1,
            "dtype": "float32",
            "load_format": "auto",
            "prompt_length": PROMPT_LENGTH,
            "response_length": RESPONSE_LENGTH,
            "max_num_seqs": 16,
        }
        override = {"attn_implementation": "eager"}
        return (
            RolloutConfig(**{**known, **settings}),
            HFModelConfig(path=str(checkpoint), override_config=override, **dict(model)),
        )

    def build(replica_rank=0, model=(), **settings):
        return HFServer(*configs(model, **settings), replica_rank=replica_rank)

    build.configs = configs
    return build


@pytest.fixture(scope="session")
def reference(checkpoint):
    return transformers.Qwen2ForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()


def ask(server, *requests, together=True):
    """The answers to pairs of prompt and sampling parameters."""

    async def run():
        if not together:
            return [await server.generate(p, dict(s), f"r{i}") for i, (p, s) in enumerate(requests)]
        return await asyncio.gather(
            *[server.generate(p, dict(s), f"r{i}") for i, (p, s) in enumerate(requests)]
        )

    return asyncio.run(asyncio.wait_for(run(), 60))


def full_forward(model, prompt, tokens, temperature, vocabulary):
    """Log-probabilities of ``tokens``, and all of them, from one pass over the whole sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1, :vocabulary]
    everything = (logits.double() / temperature).log_softmax(-1)
    return everything.gather(-1, torch.tensor(tokens)[:, None])[:, 0], everything


# ---- agreement with transformers


def test_greedy_responses_are_those_of_transformers(make, reference):
    engine = make(ignore_eos=True)
    outputs = ask(engine, *[(prompt, GREEDY) for prompt in PROMPTS])
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=RESPONSE_LENGTH,
            min_new_tokens=RESPONSE_LENGTH,
            pad_token_id=0,
            suppress_tokens=list(range(engine.options.vocabulary, reference.config.vocab_size)),
        )
        assert output.token_ids == expected[0, len(prompt) :].tolist()
        assert output.stop_reason == "completed"


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED])
def test_log_probabilities_are_those_of_a_full_forward_pass(make, reference, parameters):
    engine = make(ignore_eos=True)
    for prompt, output in zip(PROMPTS, ask(engine, *[(p, parameters) for p in PROMPTS]), strict=True):
        expected, _ = full_forward(
            reference, prompt, output.token_ids, parameters["temperature"] or 1.0, engine.options.vocabulary
        )
        torch.testing.assert_close(torch.tensor(output.log_probs).double(), expected, atol=1e-4, rtol=0)


def test_processed_log_probabilities_are_those_among_the_kept(make, reference):
    engine = make(ignore_eos=True)
    (output,) = ask(engine, (PROMPTS[0], {**SAMPLED, "top_k": 3}))
    expected, everything = full_forward(
        reference, PROMPTS[0], output.token_ids, 0.7, engine.options.vocabulary
    )
    kept = everything.topk(3, dim=-1).values.logsumexp(-1)
    torch.testing.assert_close(torch.tensor(output.log_probs).double(), expected - kept, atol=1e-4, rtol=0)


def test_filters_do_not_touch_the_log_probabilities_of_a_greedy_response(make):
    plain, filtered = ask(make(), (PROMPTS[0], GREEDY), (PROMPTS[0], {**GREEDY, "top_k": 3, "top_p": 0.5}))
    assert filtered.token_ids == plain.token_ids
    assert filtered.log_probs == pytest.approx(plain.log_probs, abs=1e-4)


def test_raw_log_probabilities_are_those_before_temperature_and_filters(make, reference):
    engine = make(ignore_eos=True, logprobs_mode="raw_logprobs")
    (output,) = ask(engine, (PROMPTS[0], {**SAMPLED, "top_k": 3}))
    expected, _ = full_forward(reference, PROMPTS[0], output.token_ids, 1.0, engine.options.vocabulary)
    torch.testing.assert_close(torch.tensor(output.log_probs).double(), expected, atol=1e-4, rtol=0)


def test_log_probabilities_come_only_if_asked_for(make):
    outputs = ask(
        make(), (PROMPTS[0], {"temperature": 0}), (PROMPTS[0], {"temperature": 0, "logprobs": True})
    )
    assert outputs[0].log_probs is None
    assert len(outputs[1].log_probs) == len(outputs[1].token_ids)


def test_the_weights_have_the_configured_dtype(make):
    assert {p.dtype for p in make(dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_ids_without_a_token_are_never_drawn(make):
    engine = make(ignore_eos=True, response_length=POSITIONS, max_model_len=POSITIONS)
    with torch.no_grad():
        engine.model.lm_head.weight[engine.options.vocabulary :] *= 100  # the model would love them
    for output in ask(engine, (PROMPTS[0], GREEDY), (PROMPTS[0], {"temperature": 5.0})):
        assert max(output.token_ids) < engine.options.vocabulary


# ---- what a response may depend on


def test_padding_changes_nothing(make):
    alone = [ask(make(ignore_eos=True), (prompt, SAMPLED))[0] for prompt in PROMPTS]
    together = ask(make(ignore_eos=True), *[(prompt, SAMPLED) for prompt in PROMPTS])
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_padding_does_not_shift_positions(make):
    # Qwen2 knows distances only; GPT-2 has an embedding for each position
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "n_positions": 32,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, initializer_range=0.5)).eval()
    settings = dataclasses.replace(make().options, vocabulary=50)
    sampling = request.read({**GREEDY, "ignore_eos": True, "max_tokens": 6}, 1, settings)

    def greedy(*prompts):
        rows = [generation.Row(prompt, sampling, None) for prompt in prompts]
        batch = generation.Batch(model, rows, settings)
        while batch.drop_done():
            batch.step()
        return rows

    short, long = [3, 4], [9, 8, 7, 6, 5, 4, 3, 2, 1]
    padded, _ = greedy(short, long)
    (alone,) = greedy(short)
    expected, _ = full_forward(model, short, alone.tokens, 1.0, 50)
    assert padded.tokens == alone.tokens
    assert padded.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
    assert alone.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_neighbours_that_finish_early_change_nothing(make):
    short = [{**SAMPLED, "max_tokens": n} for n in (1, 9, 4, 12)]
    mixed = ask(make(ignore_eos=True), *zip(PROMPTS, short, strict=True))
    full = ask(make(ignore_eos=True), *[(prompt, SAMPLED) for prompt in PROMPTS])
    for one, other, n in zip(mixed, full, (1, 9, 4, 12), strict=True):
        assert one.token_ids == other.token_ids[:n]
        assert one.log_probs == pytest.approx(other.log_probs[:n], abs=1e-4)


def test_greedy_and_sampled_requests_share_a_batch(make):
    mixed = ask(make(ignore_eos=True), (PROMPTS[0], GREEDY), (PROMPTS[0], SAMPLED))
    assert mixed[0].token_ids == ask(make(ignore_eos=True), (PROMPTS[0], GREEDY))[0].token_ids
    assert mixed[1].token_ids == ask(make(ignore_eos=True), (PROMPTS[0], SAMPLED))[0].token_ids


def test_a_prompt_asked_again_gets_another_response_and_a_new_run_the_same_ones(make):
    requests = [(PROMPTS[0], SAMPLED)] * 3
    together = [output.token_ids for output in ask(make(), *requests)]
    assert len({tuple(tokens) for tokens in together}) == 3
    assert [output.token_ids for output in ask(make(), *requests, together=False)] == together


def test_replicas_and_seeds_answer_differently(make):
    responses = {
        tuple(ask(engine, (PROMPTS[0], SAMPLED))[0].token_ids)
        for engine in (make(), make(replica_rank=1), make(seed=1))
    }
    assert len(responses) == 3


# ---- where responses end


@pytest.mark.parametrize(
    ("prompt_tokens", "parameters", "expected"),
    [
        (3, {}, RESPONSE_LENGTH),
        (PROMPT_LENGTH, {}, RESPONSE_LENGTH),
        (PROMPT_LENGTH + 5, {}, RESPONSE_LENGTH - 5),  # prompt and response together have 20 tokens
        (PROMPT_LENGTH + 40, {}, 1),  # never less than one
        (3, {"max_tokens": 4}, 4),
        (3, {"max_new_tokens": 5}, 5),
        (3, {"max_tokens": 4, "max_new_tokens": 5}, 4),
        (3, {"max_tokens": 0}, 1),
        (3, {"max_tokens": 999}, POSITIONS - 3),
        (POSITIONS - 1, {"max_tokens": 999}, 1),
    ],
)
def test_lengths(make, prompt_tokens, parameters, expected):
    (output,) = ask(make(ignore_eos=True), ([7] * prompt_tokens, {**GREEDY, **parameters}))
    assert len(output.token_ids) == len(output.log_probs) == expected
    assert output.stop_reason == "completed"


def test_a_configured_model_length_is_honoured(make):
    (output,) = ask(make(ignore_eos=True, max_model_len=10), (PROMPTS[0], GREEDY))
    assert len(output.token_ids) == 7


def test_a_prompt_without_room_for_a_response_is_refused(make):
    with pytest.raises(
        InputError, match=f"a prompt of {POSITIONS} tokens leaves no room .*max_model_len={POSITIONS}"
    ):
        ask(make(), ([7] * POSITIONS, GREEDY))


def test_an_empty_prompt_is_refused(make):
    with pytest.raises(InputError, match="the prompt is empty"):
        ask(make(), ([], GREEDY))


def test_the_end_token_ends_a_response_and_is_part_of_it(make):
    (free,) = ask(make(ignore_eos=True), (PROMPTS[1], GREEDY))
    end = free.token_ids[4]
    cut = free.token_ids[: free.token_ids.index(end) + 1]
    engine = make()
    engine.options = dataclasses.replace(engine.options, eos=frozenset({end}))
    parameters = [
        GREEDY,
        {**GREEDY, "ignore_eos": True},
        {**GREEDY, "ignore_eos": True, "stop_token_ids": [end]},
    ]
    outputs = ask(engine, *[(PROMPTS[1], p) for p in parameters])
    assert [output.token_ids for output in outputs] == [cut, free.token_ids, cut]
    assert {output.stop_reason for output in outputs} == {"completed"}


def test_the_tokenizer_and_the_generation_config_name_end_tokens(make):
    config, model = make.configs()
    model.generation_config = types.SimpleNamespace(eos_token_id=[0, 9])
    assert options.Options.read(config, model).eos == {0, 1, 9}
    assert make().options.eos == {1}


# ---- what is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"typical_p": 0.9, "best_of": 2}, "does not know the sampling parameters best_of, typical_p"),
        ({"prompt_logprobs": 0}, "does not know the sampling parameters prompt_logprobs"),
        ({"repetition_penalty": 1.1}, "cannot honour repetition_penalty=1.1; leave it at 1.0"),
        ({"min_p": 0.05}, "cannot honour min_p=0.05; leave it at 0.0"),
        ({"n": 2}, "cannot honour n=2"),
        ({"temperature": -1}, "temperature=-1.0: set 0"),
        ({"temperature": float("nan")}, "temperature=nan: set 0"),
        ({"top_p": 0}, "top_p=0.0: set a number above 0"),
        ({"top_p": 1.5}, "top_p=1.5: set a number above 0"),
        ({"top_k": -2}, "top_k=-2: set a positive number"),
    ],
)
def test_sampling_parameters_that_cannot_be_honoured(make, parameters, message):
    with pytest.raises(InputError, match=message):
        ask(make(), (PROMPTS[0], parameters))


def test_a_refused_request_does_not_disturb_its_neighbours(make):
    engine = make()

    async def run():
        return await asyncio.gather(
            engine.generate(PROMPTS[0], {"min_p": 1}, "bad"),
            engine.generate(PROMPTS[1], GREEDY, "good"),
            return_exceptions=True,
        )

    bad, good = asyncio.run(run())
    assert isinstance(bad, InputError)
    assert good.stop_reason == "completed"


@pytest.mark.parametrize("kind", ["image_data", "video_data", "audio_data", "mm_processor_kwargs"])
def test_media_are_refused(make, kind):
    with pytest.raises(InputError, match="takes text only"):
        asyncio.run(make().generate(PROMPTS[0], GREEDY, "r", **{kind: {"something": 1}}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_model_parallel_size": 2}, r"rollout.tensor_model_parallel_size=2 \(set 1\)"),
        ({"pipeline_model_parallel_size": 2}, r"rollout.pipeline_model_parallel_size=2 \(set 1\)"),
        ({"data_parallel_size": 2}, r"rollout.data_parallel_size=2 \(set 1\)"),
        ({"quantization": "fp8"}, r"rollout.quantization=fp8 \(set null\)"),
        ({"repetition_penalty": 1.2}, r"rollout.repetition_penalty=1.2 \(set 1.0\)"),
        ({"qat": {"enable": True}}, r"rollout.qat.enable=True \(set False\)"),
        ({"enable_rollout_routing_replay": True}, r"enable_rollout_routing_replay=True \(set False\)"),
        ({"mtp": MtpConfig(enable=True)}, r"mtp.enable=True \(set False\)"),
        ({"prometheus": PrometheusConfig(enable=True)}, r"prometheus.enable=True \(set False\)"),
        ({"full_determinism": True}, r"full_determinism=True \(set False\)"),
        ({"scheduling_policy": "priority"}, r"scheduling_policy=priority \(set fcfs\)"),
        ({"engine_kwargs": {"hf": {"a": 1}}}, r"engine_kwargs.hf={'a': 1} \(set null\)"),
        ({"dtype": "int8"}, r"rollout.dtype=int8 \(set one of bfloat16, float16, float32\)"),
        ({"load_format": "gguf"}, r"load_format=gguf \(set one of dummy, auto, safetensors\)"),
        ({"logprobs_mode": "raw_logits"}, r"logprobs_mode=raw_logits \(set one of processed_logprobs, raw"),
        ({"max_num_seqs": 0}, r"max_num_seqs=0 \(set 1 or more\)"),
        ({"model": {"lora_rank": 8}}, r"model.lora_rank=8 \(set 0\)"),
        ({"model": {"lora": {"rank": 4}}}, r"model.lora.rank=4 \(set 0\)"),
        ({"model": {"lora_adapter_path": "there"}}, r"model.lora_adapter_path=there \(set null\)"),
        ({"max_model_len": POSITIONS + 1}, f"max_model_len={POSITIONS + 1} exceeds .*={POSITIONS}"),
    ],
)
def test_configurations_that_cannot_be_honoured(make, settings, message):
    with pytest.raises(InputError, match=message):
        make(**settings)


def test_all_refused_keys_are_named_at_once(make):
    with pytest.raises(InputError, match=r"tensor_model_parallel_size=2 .*quantization=fp8 .*lora_rank=8"):
        make(tensor_model_parallel_size=2, quantization="fp8", model={"lora_rank": 8})


def test_the_platform_must_be_one_that_torch_can_use_here(make, monkeypatch):
    monkeypatch.setattr(server, "get_platform", lambda: types.SimpleNamespace(device_name="npu"))
    with pytest.raises(InputError, match="runs on cpu and cuda, and verl's platform is 'npu'"):
        make()
    monkeypatch.setattr(server, "get_platform", lambda: types.SimpleNamespace(device_name="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device is visible; set VERL_PLATFORM=cpu"):
        make()


# ---- batching and failures


def spy_on_batches(monkeypatch):
    sizes = []

    class Spy(generation.Batch):
        def __init__(self, model, rows, options):
            sizes.append(len(rows))
            super().__init__(model, rows, options)

    monkeypatch.setattr(server, "Batch", Spy)
    return sizes


def test_requests_that_arrive_together_are_batched_up_to_the_limit(make, monkeypatch):
    sizes = spy_on_batches(monkeypatch)
    outputs = ask(make(max_num_seqs=2), *[(prompt, GREEDY) for prompt in [*PROMPTS, [8]]])
    assert len(outputs) == 5
    assert sizes == [2, 2, 1]


def test_a_failure_reaches_every_caller_of_its_batch_and_later_requests_work(make, monkeypatch):
    engine = make()
    expected = ask(make(), (PROMPTS[0], GREEDY))[0].token_ids
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda **kwargs: torch.zeros(2) @ torch.zeros(3))

    async def run():
        both = [engine.generate(prompt, GREEDY, "r") for prompt in PROMPTS[:2]]
        failed = await asyncio.wait_for(asyncio.gather(*both, return_exceptions=True), 30)
        monkeypatch.setattr(engine.model, "forward", forward)
        return failed, await asyncio.wait_for(engine.generate(PROMPTS[0], GREEDY, "r"), 30)

    failed, output = asyncio.run(run())
    assert [type(error) for error in failed] == [RuntimeError, RuntimeError]
    assert output.token_ids == expected


def test_a_cancelled_request_leaves_its_batch_and_the_others_alone(make, monkeypatch):
    engine = make(ignore_eos=True)
    expected = ask(make(ignore_eos=True), (PROMPTS[1], GREEDY))[0].token_ids
    step, sizes = generation.Batch.step, []
    monkeypatch.setattr(generation.Batch, "step", lambda batch: sizes.append(len(batch.rows)) or step(batch))

    async def run():
        impatient = asyncio.create_task(engine.generate(PROMPTS[0], GREEDY, "a"))
        patient = asyncio.create_task(engine.generate(PROMPTS[1], GREEDY, "b"))
        while len(sizes) < 3:
            await asyncio.sleep(0)
        impatient.cancel()
        return await asyncio.wait_for(patient, 30)

    assert asyncio.run(run()).token_ids == expected
    assert (sizes[0], sizes[-1]) == (2, 1)


# ---- pausing


def interrupted_after(engine, steps, monkeypatch):
    """Have `abort_all_requests` called once ``steps`` tokens have been made; returns the running generation."""
    step, done = generation.Batch.step, []

    def count(batch):
        step(batch)
        done.append(None)

    monkeypatch.setattr(generation.Batch, "step", count)

    async def run(**options):
        task = asyncio.create_task(engine.generate(PROMPTS[0], {**SAMPLED}, "r1"))
        while len(done) < steps:
            await asyncio.sleep(0)
        report = await engine.abort_all_requests(**options)
        return report, await task

    return run


def test_abort_answers_with_what_there_is(make, monkeypatch):
    full = ask(make(ignore_eos=True), (PROMPTS[0], SAMPLED))[0]
    engine = make(ignore_eos=True)
    report, output = asyncio.run(interrupted_after(engine, 3, monkeypatch)())
    assert report == {"aborted_count": 1, "request_ids": ["r1"]}
    assert output.stop_reason == "aborted"
    assert 3 <= len(output.token_ids) < RESPONSE_LENGTH
    assert output.token_ids == full.token_ids[: len(output.token_ids)]
    assert output.log_probs == full.log_probs[: len(output.log_probs)]


def test_requests_wait_from_abort_to_resume(make):
    engine = make()

    async def run():
        assert await engine.abort_all_requests() == {"aborted_count": 0, "request_ids": []}
        waiting = asyncio.create_task(engine.generate(PROMPTS[0], GREEDY, "r"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await engine.resume_generation()
        return await asyncio.wait_for(waiting, 30)

    assert asyncio.run(run()).stop_reason == "completed"


def test_requests_may_be_turned_away_instead_and_those_that_wait_too(make):
    engine = make()

    async def run():
        await engine.abort_all_requests()
        waiting = asyncio.create_task(engine.generate(PROMPTS[0], GREEDY, "r"))
        await asyncio.sleep(0.01)
        await engine.abort_all_requests(reject_request=True)
        return await waiting, await engine.generate(PROMPTS[0], GREEDY, "r")

    for output in asyncio.run(run()):
        assert (output.token_ids, output.stop_reason) == ([], "aborted")


def test_requests_queued_behind_a_batch_are_aborted_too(make, monkeypatch):
    engine = make(max_num_seqs=1, ignore_eos=True)
    run = interrupted_after(engine, 2, monkeypatch)

    async def both():
        aborting = asyncio.create_task(run())
        await asyncio.sleep(0)
        queued = asyncio.create_task(engine.generate(PROMPTS[1], GREEDY, "r2"))
        return (await aborting)[0], await queued

    report, output = asyncio.run(both())
    assert report["aborted_count"] == 2
    assert (output.token_ids, output.stop_reason) == ([], "aborted")


def test_asleep_it_refuses_and_awake_it_answers_as_before(make):
    engine = make()

    async def run():
        before = await engine.generate(PROMPTS[0], GREEDY, "r")
        await engine.sleep()
        with pytest.raises(EstimatorError, match="cannot generate: it is asleep"):
            await engine.generate(PROMPTS[0], GREEDY, "r")
        await engine.wake_up(tags=["weights"])
        with pytest.raises(EstimatorError, match="is asleep"):
            await engine.generate(PROMPTS[0], GREEDY, "r")
        await engine.wake_up(tags=["kv_cache"])
        after = await engine.generate(PROMPTS[0], GREEDY, "r")
        await engine.sleep()
        await engine.wake_up()
        return before, after, await engine.generate(PROMPTS[0], GREEDY, "r")

    before, after, again = asyncio.run(run())
    assert before.token_ids == after.token_ids == again.token_ids


def test_sleep_waits_for_running_requests(make):
    engine = make()

    async def run():
        running = asyncio.create_task(engine.generate(PROMPTS[0], GREEDY, "r"))
        await asyncio.sleep(0)
        await engine.sleep()
        return running.done() and await running

    assert asyncio.run(run()).stop_reason == "completed"


@pytest.mark.parametrize(
    ("settings", "mode"),
    [({"free_cache_engine": False}, "HYBRID"), ({}, "STANDALONE")],
)
def test_it_does_not_sleep_if_told_not_to_or_if_it_has_the_device_to_itself(make, settings, mode):
    engine = HFServer(*make.configs(**settings), rollout_mode=rollout_replica.RolloutMode[mode])

    async def run():
        await engine.sleep()
        return await engine.generate(PROMPTS[0], GREEDY, "r")

    assert asyncio.run(run()).stop_reason == "completed"


def test_the_calls_without_anything_to_do_are_there(make):
    engine = make()

    async def run():
        for call in (
            "clear_kv_cache",
            "release_kv_cache",
            "resume_kv_cache",
            "start_profile",
            "stop_profile",
        ):
            assert await getattr(engine, call)() is None
        await engine.wait_for_requests_to_drain()

    asyncio.run(run())


# ---- weights


def other_weights(engine):
    torch.manual_seed(1)
    return {name: torch.randn_like(value) * 0.5 for name, value in engine.model.state_dict().items()}


async def send(engine, *parts, version=None):
    await engine.begin_update()
    for part in parts:
        await engine.load_weights(part)
    await engine.finish_update(version)


def test_new_weights_are_used_and_their_version_is_told(make, reference):
    engine = make(load_format="dummy", ignore_eos=True)
    with pytest.raises(EstimatorError, match="cannot generate: it has no weights yet"):
        ask(engine, (PROMPTS[0], GREEDY))
    weights = list(reference.state_dict().items())
    asyncio.run(send(engine, dict(weights[:5]), dict(weights[5:]), version=17))
    (output,) = ask(engine, (PROMPTS[0], GREEDY))
    assert output.token_ids == ask(make(ignore_eos=True), (PROMPTS[0], GREEDY))[0].token_ids
    assert output.extra_fields == {"global_steps": 17}
    asyncio.run(send(engine, dict(weights)))  # verl sends without a version after validation
    assert engine.global_steps == 17
    asyncio.run(engine.set_global_steps(18))
    assert ask(engine, (PROMPTS[0], GREEDY))[0].extra_fields == {"global_steps": 18}


def test_new_weights_change_the_responses(make):
    engine = make()
    before = ask(engine, (PROMPTS[0], GREEDY))[0].token_ids
    asyncio.run(send(engine, other_weights(engine)))
    assert ask(engine, (PROMPTS[0], GREEDY))[0].token_ids != before


def test_a_version_of_the_weights_has_streams_of_its_own_whatever_was_asked_before(make):
    one, other = make(), make()
    weights = {
        name: value.clone() for name, value in one.model.state_dict().items()
    }  # the same ones throughout
    asyncio.run(send(one, weights, version=1))
    first, second = (output.token_ids for output in ask(one, (PROMPTS[0], SAMPLED), (PROMPTS[0], SAMPLED)))
    asyncio.run(send(one, weights, version=2))
    asyncio.run(send(other, weights, version=2))
    third = ask(one, (PROMPTS[0], SAMPLED))[0].token_ids
    assert third == ask(other, (PROMPTS[0], SAMPLED))[0].token_ids
    assert third not in (first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"model.extra.weight": torch.zeros(1)}),
            "does not have: model.extra.weight; it has lm_",
        ),
        (
            lambda w: w.pop("model.norm.weight"),
            "did not send these weights of the rollout model: model.norm.weight",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            r"model.norm.weight as \(3,\), .* as \(32,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_so_is_generating_with_half_of_them(make, change, message):
    engine = make()
    weights = other_weights(engine)
    change(weights)
    with pytest.raises(InputError, match=message):
        asyncio.run(send(engine, weights))
    with pytest.raises(
        EstimatorError, match="is being sent new weights, or the last transfer failed half-way"
    ):
        ask(engine, (PROMPTS[0], GREEDY))
    asyncio.run(send(engine, other_weights(engine)))
    assert ask(engine, (PROMPTS[0], GREEDY))[0].stop_reason == "completed"


def test_a_long_list_of_names_is_cut(make):
    with pytest.raises(InputError, match=r"did not send .* and \d+ more"):
        asyncio.run(send(make()))


def test_tied_weights_may_come_under_either_name_or_both(make):
    tied = {"override_config": {"attn_implementation": "eager", "tie_word_embeddings": True}}
    config, model_config = make.configs(load_format="dummy")
    engine = HFServer(config, HFModelConfig(path=model_config.path, **tied))
    assert engine.model.lm_head.weight is engine.model.model.embed_tokens.weight
    weights = {name: value.clone() for name, value in engine.model.state_dict().items()}
    for dropped in ("lm_head.weight", "model.embed_tokens.weight", None):
        asyncio.run(send(engine, {name: value for name, value in weights.items() if name != dropped}))


def test_an_update_waits_for_running_requests(make):
    engine = make(ignore_eos=True)
    expected = ask(make(ignore_eos=True), (PROMPTS[0], GREEDY))[0].token_ids

    async def run():
        running = asyncio.create_task(engine.generate(PROMPTS[0], GREEDY, "r"))
        await asyncio.sleep(0)
        await send(engine, other_weights(engine))
        return await running

    assert asyncio.run(run()).token_ids == expected


def test_weights_without_a_beginning_are_refused(make):
    with pytest.raises(EstimatorError, match="sent without a begin_update"):
        asyncio.run(make().load_weights({}))


# ---- the adapter, with the server called directly instead of through Ray


class Handle:
    """What Ray would give: every method under ``.remote``."""

    def __init__(self, target, calls):
        self._target, self._calls = target, calls

    def __getattr__(self, name):
        def remote(*args, **kwargs):
            self._calls.append(name)
            return getattr(self._target, name)(*args, **kwargs)

        return types.SimpleNamespace(remote=remote)


@pytest.fixture
def connect(make, monkeypatch):
    """An adapter of rank 3, and what it called on the servers by name."""

    def build(engine, **settings):
        calls, asked = [], []
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setattr(
            adapter_module.ray, "get_actor", lambda name: asked.append(name) or Handle(engine, calls)
        )
        return HFAdapter(*make.configs(**settings), device_mesh=None), calls, asked

    return build


def test_the_adapter_pushes_to_the_server_of_its_own_rank(make, connect):
    engine = make(load_format="dummy")
    adapter, calls, asked = connect(engine)
    weights = other_weights(engine)
    asyncio.run(adapter.update_weights(iter(weights.items()), global_steps=5, base_sync_done=True))
    assert (adapter.replica_rank, set(asked)) == (3, {"hf_server_3_0"})
    assert calls == ["begin_update", "load_weights", "finish_update"]
    assert engine.global_steps == 5
    assert all(torch.equal(value, weights[name]) for name, value in engine.model.state_dict().items())


def test_the_adapter_sends_large_models_in_parts(make, connect):
    engine = make(load_format="dummy")
    adapter, calls, _ = connect(
        engine, checkpoint_engine=CheckpointEngineConfig(update_weights_bucket_megabytes=0)
    )
    weights = other_weights(engine)
    asyncio.run(adapter.update_weights(iter(weights.items())))
    assert calls.count("load_weights") == len(weights)


def test_the_adapter_takes_an_asynchronous_stream(make, connect):
    engine = make(load_format="dummy")
    adapter, _, _ = connect(engine)

    async def stream():
        for item in other_weights(engine).items():
            yield item

    asyncio.run(adapter.update_weights(stream()))
    assert ask(engine, (PROMPTS[0], GREEDY))[0].stop_reason == "completed"


def test_the_adapter_passes_sleep_and_waking_on(make, connect):
    engine = make()
    adapter, calls, _ = connect(engine)
    asyncio.run(adapter.release())
    asyncio.run(adapter.resume(["weights"]))
    asyncio.run(adapter.resume(["kv_cache"]))
    assert calls == ["sleep", "wake_up", "wake_up"]
    assert ask(engine, (PROMPTS[0], GREEDY))
    adapter, calls, _ = connect(engine, free_cache_engine=False)
    asyncio.run(adapter.release())
    asyncio.run(adapter.resume(["weights"]))
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wire_format": "delta_flush"}, "takes full tensors, and wire_format='delta_flush'"),
        ({"peft_config": {"r": 8}}, "has no LoRA; set actor_rollout_ref.model.lora_rank=0"),
    ],
)
def test_the_adapter_refuses_other_transfers(make, connect, arguments, message):
    adapter, _, _ = connect(make())
    with pytest.raises(InputError, match=message):
        asyncio.run(adapter.update_weights(iter([]), **arguments))


def test_the_adapter_refuses_at_construction(connect):
    with pytest.raises(InputError, match="tensor_model_parallel_size=2"):
        connect(None, tensor_model_parallel_size=2)


# ---- the replica, and verl's registries


def test_the_replica_refuses_at_construction(make):
    with pytest.raises(InputError, match="quantization=fp8"):
        replica.HFReplica(0, *make.configs(quantization="fp8"))
    with pytest.raises(InputError, match="serves the actor only; choose another engine for the reward model"):
        replica.HFReplica(0, *make.configs(), is_reward_model=True)
    with pytest.raises(InputError, match="choose another engine for the teacher"):
        replica.HFReplica(0, *make.configs(), is_teacher_model=True)


def test_the_server_sees_its_worker_s_device_and_no_other(monkeypatch):
    monkeypatch.setattr(replica, "get_platform", PlatformCPU)
    assert replica._environment(["0"]) == {}
    cuda = types.SimpleNamespace(
        device_name="cuda",
        visible_devices_envvar=lambda: "CUDA_VISIBLE_DEVICES",
        ray_noset_envvars=lambda: ["RAY_NOSET"],
        rollout_env_vars=lambda: {"OTHER": "0"},
    )
    monkeypatch.setattr(replica, "get_platform", lambda: cuda)
    assert replica._environment(["5"]) == {"RAY_NOSET": "1", "CUDA_VISIBLE_DEVICES": "5", "OTHER": "0"}


def test_verl_finds_the_engine_by_name():
    assert rollout_base.get_rollout_class("hf") is HFAdapter
    assert rollout_replica.get_rollout_replica_class("hf") is replica.HFReplica


def test_an_engine_of_verl_s_own_is_left_in_place(caplog):
    theirs = types.SimpleNamespace(_ROLLOUT_REGISTRY={("hf", "async"): "verl.Theirs"})
    rollout.register_adapter(theirs)
    assert theirs._ROLLOUT_REGISTRY == {("hf", "async"): "verl.Theirs"}
    loader = object()
    registry = types.SimpleNamespace(_registry={"hf": loader})
    rollout.register_replica(types.SimpleNamespace(RolloutReplicaRegistry=registry))
    assert registry._registry == {"hf": loader}
    assert len([r for r in caplog.records if "ours is not offered" in r.getMessage()]) == 2
