"""Greedy rollouts for ReMax: verl's own worker, replay buffer and trainer around a queue in memory."""

import asyncio
import importlib
import sys
import types
from collections import defaultdict

import pytest
import torch

pytest.importorskip("verl")
pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

from omegaconf import OmegaConf  # noqa: E402

import rl_estimators  # noqa: E402
from rl_estimators import patching  # noqa: E402
from rl_estimators.errors import EstimatorError, InputError, PatchError  # noqa: E402
from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402
from rl_estimators.verl import greedy, step_metrics  # noqa: E402

NAN = float("nan")


def load(module):
    return importlib.import_module(module)


def config(estimator="rle_remax", n=2, **more):
    settings = {
        "algorithm": {"adv_estimator": estimator, "gamma": 1.0, "lam": 1.0, "use_kl_in_reward": False},
        "actor_rollout_ref": {
            "rollout": {"n": n, "val_kwargs": {"n": 1}},
            "actor": {"use_kl_loss": False},
            "model": {},
        },
        "trainer": {"use_v1": True},
        "critic": {"enable": None},
        "data": {},
    }
    return OmegaConf.merge(settings, more)


# --------------------------------------------------------------------------------------------- configuration


@pytest.fixture
def own_registry(monkeypatch):
    core_algos = load("verl.trainer.ppo.core_algos")
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    monkeypatch.setattr(core_algos, "ADV_ESTIMATOR_REGISTRY", dict(core_algos.ADV_ESTIMATOR_REGISTRY))


def test_wanted_by_signature_and_by_verls_own_name(own_registry):
    @rl_estimators.register_adv_est("halved")
    def halved(token_level_rewards, response_mask, reward_baselines):
        return token_level_rewards, token_level_rewards

    @rl_estimators.register_adv_est("can_do_without")
    def can_do_without(token_level_rewards, response_mask, reward_baselines=None):
        return token_level_rewards, token_level_rewards

    names = [
        "remax",
        "rle_remax",
        "halved",
        "rle_halved",
        "can_do_without",
        "grpo",
        "rle_grpo",
        "gae",
        "unknown",
    ]
    assert [greedy.wanted(config(name)) for name in names] == [True] * 4 + [False] * 5
    enum = load("verl.trainer.ppo.core_algos").AdvantageEstimator.REMAX
    assert greedy.wanted(types.SimpleNamespace(algorithm=types.SimpleNamespace(adv_estimator=enum)))


def test_the_legacy_trainer_serves_its_own_name_only():
    legacy = {"trainer": {"use_v1": False}}
    greedy.check(config("remax", **legacy))
    greedy.check(config("rle_grpo", **legacy))
    message = (
        "algorithm.adv_estimator=rle_remax with trainer.use_v1=False: .* for the name remax only; "
        "set algorithm.adv_estimator=remax, or leave trainer.use_v1 at True"
    )
    with pytest.raises(InputError, match=message):
        greedy.check(config("rle_remax", **legacy))


@pytest.mark.parametrize("name", ["remax", "rle_remax"])
@pytest.mark.parametrize("hook", greedy.HOOKS)
def test_every_hook_is_required(name, hook, monkeypatch):
    load("verl.trainer.ppo.v1.trainer_base")
    greedy.check(config(name))
    status = patching._statuses[hook]
    disabled = patching.Status(status.patch, patching.State.DISABLED, "by hand")
    monkeypatch.setitem(patching._statuses, hook, disabled)
    message = (
        rf"algorithm.adv_estimator={name} needs a hook that is not in force. {hook}: disabled \(by hand\)"
    )
    with pytest.raises(PatchError, match=message):
        greedy.check(config(name))
    greedy.check(config("rle_grpo"))


# ----------------------------------------------------------------------------------------- a queue in memory


class Queue:
    """What verl uses of TransferQueue's interface, in one process."""

    def __init__(self):
        self.tags = defaultdict(dict)
        self.rows = defaultdict(dict)

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        for i, key in enumerate(keys):
            tag = self.tags[partition_id].setdefault(key, {})
            tag.update(tags[i] if tags else {})
            row = self.rows[partition_id].setdefault(key, {})
            for name in fields.keys() if fields is not None else ():
                value = fields.get(name)
                row[name] = (
                    value.unbind()[i] if torch.is_tensor(value) else getattr(value[i], "data", value[i])
                )
        tags = [self.tags[partition_id][key] for key in keys]
        return load("transfer_queue").KVBatchMeta(keys=list(keys), tags=tags, partition_id=partition_id)

    def kv_put(self, key, partition_id, fields=None, tag=None):
        assert fields is None
        return self.kv_batch_put([key], partition_id, tags=[tag])

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        manager = load("transfer_queue.storage.managers.simple_storage_manager").AsyncSimpleStorageManager
        rows = [self.rows[partition_id][key] for key in keys]
        shared = [name for name in rows[0] if all(name in row for row in rows)]
        names = [name for name in shared if select_fields is None or name in select_fields]
        columns = {name: manager._pack_field_values([row[name] for row in rows]) for name in names}
        return load("tensordict").TensorDict(columns, batch_size=len(keys))

    def kv_list(self, partition_id=None):
        if partition_id is None:
            return {name: dict(tags) for name, tags in self.tags.items()}
        return {partition_id: dict(self.tags[partition_id])} if partition_id in self.tags else {}

    def kv_clear(self, keys, partition_id):
        for key in [keys] if isinstance(keys, str) else keys:
            self.tags[partition_id].pop(key, None)
            self.rows[partition_id].pop(key, None)

    def install(self, monkeypatch):
        module = load("transfer_queue")
        for name in ("kv_put", "kv_batch_put", "kv_batch_get", "kv_list", "kv_clear"):
            method = getattr(self, name)

            async def later(*args, method=method, **kwargs):
                return method(*args, **kwargs)

            monkeypatch.setattr(module, name, method)
            monkeypatch.setattr(module, f"async_{name}", later)


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    queue.install(monkeypatch)
    step_metrics.drain()
    return queue


# ----------------------------------------------------------------------------------- in an agent-loop worker


class Play:
    """An agent loop whose sessions answer as a test says, and the reward of an answer [k, ...]: k / 10."""

    def __init__(self, answer):
        self.answer = (
            answer  # (session, prompt's name) -> the ids of an answer, several of them, or an exception
        )
        self.calls = []

    async def run(self, sampling_params, **kwargs):
        self.calls.append((kwargs["uid"], kwargs["session_id"], sampling_params["temperature"]))
        answer = self.answer(kwargs["session_id"], kwargs["uid"])
        await asyncio.sleep(0.02 if kwargs["session_id"] == greedy.SESSION else 0)
        if isinstance(answer, Exception):
            raise answer
        several = answer and isinstance(answer[0], list)
        outputs = [self.output(ids) for ids in (answer if several else [answer])]
        return [] if answer == [] else outputs if several else outputs[0]

    @staticmethod
    def output(ids):
        module = load("verl.experimental.agent_loop.agent_loop")
        metrics = module.AgentLoopMetrics()
        return module.AgentLoopOutput(
            prompt_ids=[7, 7],
            response_ids=ids,
            response_mask=[1] * len(ids),
            metrics=metrics,
            extra_fields={},
        )

    async def remote(self, data):
        """verl's reward worker: scores the last of a session's outputs."""
        score = float(data.batch["responses"][-1][0]) / 10
        return {"reward_score": NAN if score == 9.9 else score, "reward_extra_info": {}}


@pytest.fixture
def worker(monkeypatch, queue):
    """Runs prompts through verl's own worker class; returns what the agent loop was called with."""
    agent_loop = load("verl.experimental.agent_loop.agent_loop")
    cls = load("verl.trainer.ppo.v1.agent_loop_tq").AgentLoopWorkerTQ.__ray_metadata__.modified_class
    module = types.ModuleType("rle_agents")
    monkeypatch.setitem(sys.modules, "rle_agents", module)
    monkeypatch.setitem(agent_loop._agent_loop_registry, "play", {"_target_": "rle_agents.play"})

    def run(answer, uids=("a",), colocated=False, validate=False, **settings):
        play = Play(answer)
        module.play = lambda **kwargs: play
        one = object.__new__(cls)
        handles = None if colocated else [types.SimpleNamespace(compute_score=play)]
        attributes = {
            "config": config(**settings), "reward_loop_worker_handles": handles, "llm_client": None, "tools": [],
            "tokenizer": None, "processor": None, "hf_model_type": None, "dataset_cls": None,
            "distillation_enabled": False, "mm_processor_kwargs": {},
        }  # fmt: skip
        vars(one).update(attributes)
        partition = "val" if validate else "train"
        trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": validate}

        async def prompts():
            await asyncio.gather(*(prompt(uid) for uid in uids))

        async def prompt(uid):
            tag = {"is_prompt": True, "status": "pending", "global_steps": 1}
            queue.kv_put(uid, partition, tag=tag)
            row = {"uid": uid, "raw_prompt": [{"role": "user", "content": uid}], "global_steps": 1}
            sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 5}
            await one._run_prompt({**row, "agent_name": "play"}, sampling, trajectory)

        asyncio.run(prompts())
        return play.calls

    return run


def column(queue, name):
    rows = {key: row for key, row in queue.rows["train"].items() if "responses" in row}
    return {key: row[name].tolist() for key, row in rows.items()}


def simple(session, uid):
    """Samples earn .0, .1, ..., greedy responses .5."""
    return [5] if session == greedy.SESSION else [session]


@pytest.mark.parametrize("estimator", ["remax", "rle_remax"])
def test_one_greedy_session_per_prompt_and_rows_of_samples_only(worker, queue, estimator):
    calls = worker(simple, uids=("a", "b"), estimator=estimator, n=3)
    for uid in "ab":
        of_prompt = sorted(call[1:] for call in calls if call[0] == uid)
        assert of_prompt == [(greedy.SESSION, 0), (0, 1.0), (1, 1.0), (2, 1.0)]
        assert queue.tags["train"][uid]["status"] == "finished"
    rewards = column(queue, greedy.REWARD)
    assert rewards == {f"{uid}_{session}_0": 0.5 for uid in "ab" for session in range(3)}
    assert [row.sum() for row in map(torch.tensor, column(queue, "rm_scores").values())] == pytest.approx(
        [0.0, 0.1, 0.2] * 2
    )
    assert list(queue.tags) == ["train"]


def test_one_sample_per_prompt(worker, queue):
    calls = worker(simple, n=1)
    assert sorted(call[1] for call in calls) == [greedy.SESSION, 0]
    assert column(queue, greedy.REWARD) == {"a_0_0": 0.5}


def test_greedy_sampling_is_verls():
    params = {}
    load("verl.trainer.ppo.v1.agent_loop_tq").apply_greedy_sampling_params(params)
    assert params == greedy.GREEDY


@pytest.mark.parametrize("settings", [{"validate": True}, {"estimator": "rle_grpo"}, {"estimator": "grpo"}])
def test_nobody_else_gets_one(worker, queue, settings):
    calls = worker(simple, **settings)
    assert greedy.SESSION not in [call[1] for call in calls]
    rows = [row for partition in queue.rows.values() for row in partition.values() if "responses" in row]
    assert rows
    assert not [row for row in rows if greedy.REWARD in row]


def test_the_legacy_trainer_is_left_alone():
    """Its calls name no session."""

    async def original(worker, sampling_params, trajectory, **kwargs):
        return worker, sampling_params, kwargs

    params, one = {"temperature": 1.0}, types.SimpleNamespace(config=config("remax"))
    call = greedy.run_session(original, one, params, {"validate": False}, agent_name="x", uid="a")
    assert asyncio.run(call) == (one, params, {"agent_name": "x", "uid": "a"})


def test_outputs_of_a_session(worker, queue):
    """Each of a session's outputs is a row; the greedy session's reward is that of its final one."""
    several = {greedy.SESSION: [[1], [2], [8]], 0: [[3], [4]], 1: [6]}
    worker(lambda session, uid: several[session])
    assert column(queue, greedy.REWARD) == dict.fromkeys(["a_0_0", "a_0_1", "a_1_0"], pytest.approx(0.8))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("the engine is gone"), "RuntimeError: the engine is gone"),
        ([], "the agent loop gave no output"),
        ([99], "its reward is nan, expected a finite number"),
    ],
)
def test_a_failed_greedy_session_drops_its_prompt(worker, queue, caplog, answer, reason):
    worker(lambda session, uid: answer if (session, uid) == (greedy.SESSION, "b") else [5], uids=("a", "b"))
    assert (queue.tags["train"]["a"]["status"], queue.tags["train"]["b"]["status"]) == ("finished", "failure")
    assert [*column(queue, greedy.REWARD)] == ["a_0_0", "a_1_0"]
    assert [*queue.tags[greedy.FAILED]] == ["b"]
    (warning,) = [r for r in caplog.records if r.name == greedy.__name__]
    assert warning.getMessage() == "rl_estimators: prompt b is dropped, as its greedy rollout failed"
    assert reason in caplog.text
    assert (
        "EstimatorError: prompt b is dropped, as its greedy rollout failed" in caplog.text
    )  # by verl, per sample


def test_a_reward_worker_without_a_reward(worker, queue, monkeypatch, caplog):
    async def nothing(self, data):
        return {"reward_score": None, "reward_extra_info": {}}

    monkeypatch.setattr(Play, "remote", nothing)
    worker(simple)
    assert queue.tags["train"]["a"]["status"] == "failure"
    assert "its reward is None, expected a finite number" in caplog.text


def test_a_failed_sample_is_verls_business(worker, queue):
    worker(lambda session, uid: RuntimeError("no") if session == 0 else [5], n=3)
    assert queue.tags["train"]["a"]["status"] == "failure"
    assert [*column(queue, greedy.REWARD)] == ["a_1_0", "a_2_0"]
    assert greedy.FAILED not in queue.tags


def test_nothing_runs_on_when_all_samples_failed(worker, queue):
    """The greedy session takes longest; the prompt is settled after it."""
    ended = []

    def answer(session, uid):
        if session == greedy.SESSION:
            asyncio.current_task().add_done_callback(
                lambda task: ended.append(queue.tags["train"][uid]["status"])
            )
            return [5]
        return RuntimeError("no")

    worker(answer)
    assert ended == ["running"]
    assert queue.tags["train"]["a"]["status"] == "failure"
    assert len(greedy._running) == 0


def test_without_reward_workers_the_rows_carry_the_response(worker, queue):
    worker(lambda session, uid: [5, 6, 7] if session == greedy.SESSION else [session], colocated=True)
    assert column(queue, greedy.RESPONSE) == {"a_0_0": [5, 6, 7], "a_1_0": [5, 6, 7]}
    assert column(queue, greedy.PROMPT) == {"a_0_0": [7, 7], "a_1_0": [7, 7]}


# ------------------------------------------------------------------------------------------ the replay buffer


@pytest.fixture
def sample(queue):
    """Samples prompts as verl's trainers do; returns the keys, the metrics and how many prompts were replaced."""

    def run(mode, count, refill=lambda number: None, **settings):
        module = load("verl.trainer.ppo.v1.replay_buffer")
        cls = module.ReplayBuffer if mode == "sync" else module.ReplayBufferAsync
        replaced = []

        def refill_fn(number):
            replaced.append(number)
            refill(number)

        buffer = cls(
            trainer_mode=mode, trainer_config=None, max_off_policy_threshold=8, max_off_policy_strategy="drop",
            sampler_kwargs=None, poll_interval=0.0, refill_fn=refill_fn, train_batch_size=count, gen_batch_size=1,
            **settings,
        )  # fmt: skip
        batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=count)
        return batch, metrics, replaced

    return run


def failing(session, uid):
    return RuntimeError("no") if (session, uid) == (greedy.SESSION, "b") else [5]


def test_sync_goes_on_with_the_prompts_that_are_left(worker, sample):
    worker(failing, uids=("a", "b", "c"))
    batch, metrics, replaced = sample("sync", 3)
    assert sorted(batch.keys) == ["a_0_0", "a_1_0", "c_0_0", "c_1_0"]
    assert (metrics, replaced) == ({}, [])


def test_sync_with_nothing_left(worker, sample):
    worker(failing, uids=("b",))
    with pytest.raises(RuntimeError, match="no materializable trajectories"):
        sample("sync", 1)


@pytest.mark.parametrize(
    ("mode", "settings"), [("sync", {"sync_refill_failed_groups": True}), ("colocate_async", {})]
)
def test_others_replace_the_prompt(worker, sample, mode, settings):
    worker(failing, uids=("a", "b"))
    batch, metrics, replaced = sample(mode, 2, lambda number: worker(simple, uids=("d",)), **settings)
    assert sorted(batch.keys) == ["a_0_0", "a_1_0", "d_0_0", "d_1_0"]
    assert (metrics, replaced) == ({"training/rollout_failure/evicted_samples": 1}, [1])


def test_group_filtering_sees_the_samples_only(worker, sample):
    """Prompt a: both samples earn .5, the greedy response .9, so there is nothing to tell apart: filtered."""

    def answer(session, uid):
        return [9] if session == greedy.SESSION else [5] if uid == "a" else [session]

    worker(answer, uids=("a", "b"))
    batch, metrics, _ = sample("colocate_async", 1, lambda number: None, filter_groups_metric="reward")
    assert sorted(batch.keys) == ["b_0_0", "b_1_0"]
    assert metrics["training/filter_groups/evicted_samples"] == 1


# ------------------------------------------------------------------------------------------------ the trainer


def trainer(estimator="rle_remax", **attributes):
    """An object with what verl's trainer methods read, and those methods."""
    cls = load("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    methods = ("_compute_advantage", "_compute_reward_colocate")
    one = types.SimpleNamespace(config=config(estimator), **attributes)
    for name in methods:
        setattr(one, name, types.MethodType(getattr(cls, name), one))
    one._lengths_to_mask = cls._lengths_to_mask
    return one


def pad(batch, multiple):
    return load("verl.trainer.ppo.padding_utils").upsample_batch_to_divisible_size(
        batch, multiple, eos_token_id=0
    )


GREEDY_ANSWERS = {"a": [5], "b": [1]}


@pytest.fixture
def batch(worker, sample):
    """Prompt a: samples .2 and .3 (two outputs), greedy .5. Prompt b: samples .2 and .3, greedy .1. And padding."""

    def answer(session, uid):
        if session == greedy.SESSION:
            return GREEDY_ANSWERS[uid]
        return [[4, 4], [3, 0, 0]] if (session, uid) == (1, "a") else [session + 2]

    def build(**settings):
        worker(answer, uids=("a", "b"), **settings)
        return pad(sample("sync", 2)[0], 4)

    return build


@pytest.mark.parametrize("estimator", ["remax", "rle_remax"])
def test_advantages_and_metrics_by_hand(batch, queue, estimator):
    """At each valid token of an outcome-rewarded response: its reward minus its prompt's greedy one."""
    rows, metrics = batch(), {}
    assert sum(tag.get("is_padding", False) for tag in rows.tags) == 3
    trainer(estimator)._compute_advantage(rows, metrics)
    found = {key: queue.rows["train"][key]["advantages"] for key in rows.keys}
    expected = {
        "a_0_0": [-0.3], "a_1_0": [-0.2, -0.2], "a_1_1": [-0.2, -0.2, -0.2], "b_0_0": [0.1], "b_1_0": [0.2]
    }  # fmt: skip
    for key, row in found.items():
        torch.testing.assert_close(row, torch.tensor(expected.get(key, [0.0])))
    assert metrics["rl_estimators/greedy_reward_mean"] == pytest.approx(0.3)
    assert metrics["rl_estimators/greedy_wins"] == 0.5  # .5 beats the mean .25, .1 does not
    assert step_metrics.drain()["rl_estimators/greedy_failed"] == 0


def test_failures_are_counted_once(worker, sample, queue):
    worker(failing, uids=("a", "b"))
    rows = sample("sync", 2)[0]
    trainer()._compute_advantage(rows, {})
    assert step_metrics.drain()["rl_estimators/greedy_failed"] == 1
    trainer()._compute_advantage(rows, {})
    assert step_metrics.drain()["rl_estimators/greedy_failed"] == 0


@pytest.mark.parametrize("estimator", ["remax", "rle_remax"])
def test_workers_without_the_hook_are_noticed(batch, estimator):
    rows = batch(estimator="rle_grpo")
    message = (
        rf"algorithm.adv_estimator={estimator}: no greedy rollouts in the batch, some rows have no "
        "rle_greedy_reward. The agent-loop workers run without the hook verl_greedy_session: run `rl-estimators doctor`"
    )
    with pytest.raises(PatchError, match=message):
        trainer(estimator)._compute_advantage(rows, {})
    with pytest.raises(PatchError, match="have no rle_greedy_response"):
        trainer(estimator)._compute_reward_colocate(rows)


def test_others_are_left_alone(batch, queue):
    rows, metrics = batch(estimator="grpo"), {}
    trainer("grpo")._compute_advantage(rows, metrics)
    assert metrics == {}


class RewardModel:
    """verl's reward manager with a colocated model: the reward of an answer [k, ...] is k / 10."""

    def __init__(self):
        self.seen = []

    def compute_rm_score(self, data):
        responses = data.batch["responses"]
        self.seen += [row.tolist() for row in responses]
        scores = torch.zeros(responses.shape)
        scores[:, 0] = torch.where(responses[:, 0] == 99, NAN, responses[:, 0] / 10)
        protocol = load("verl.protocol")
        return protocol.DataProto.from_dict({"rm_scores": scores}, meta_info={"reward_extra_keys": []})


def colocated(estimator="rle_remax"):
    tokenizer = types.SimpleNamespace(pad_token_id=0)
    return trainer(estimator, reward_loop_manager=RewardModel(), tokenizer=tokenizer)


@pytest.mark.parametrize("estimator", ["remax", "rle_remax"])
def test_a_colocated_reward_model_scores_both(worker, sample, queue, estimator):
    answers = {("a", greedy.SESSION): [5, 1], ("b", greedy.SESSION): [1]}
    worker(lambda session, uid: answers.get((uid, session), [session + 2]), uids=("a", "b"), colocated=True)
    one, rows = colocated(estimator), sample("sync", 2)[0]
    scored = one._compute_reward_colocate(rows, metrics={})
    assert scored is rows
    assert sorted(one.reward_loop_manager.seen) == [
        [1, 0],
        [2, 0],
        [2, 0],
        [3, 0],
        [3, 0],
        [5, 1],
    ]  # in one call
    assert not [key for key in queue.tags["train"] if f"_{greedy.SESSION}_" in key]
    one._compute_advantage(scored, {})
    found = {key: queue.rows["train"][key]["advantages"].item() for key in rows.keys}
    assert found == pytest.approx({"a_0_0": -0.3, "a_1_0": -0.2, "b_0_0": 0.1, "b_1_0": 0.2})


def test_a_reward_model_without_a_number_drops_the_prompt(worker, sample, queue, caplog):
    worker(
        lambda session, uid: [99] if (session, uid) == (greedy.SESSION, "b") else [5],
        uids=("a", "b"),
        colocated=True,
    )
    rows = sample("sync", 2)[0]
    left = colocated()._compute_reward_colocate(rows, metrics={})
    assert sorted(left.keys) == ["a_0_0", "a_1_0"]
    assert sorted(queue.rows["train"]) == ["a_0_0", "a_1_0"]
    assert step_metrics.drain() == {"rl_estimators/greedy_failed": 1.0}
    assert "prompts b are dropped, as their greedy rewards are not finite" in caplog.text


def test_a_reward_model_without_any_number(worker, sample):
    worker(lambda session, uid: [99], colocated=True)
    with pytest.raises(
        EstimatorError, match="no prompt is left: the reward model gave no greedy response a finite"
    ):
        colocated()._compute_reward_colocate(sample("sync", 1)[0], metrics={})


def test_validation_is_scored_as_ever():
    called = []
    one, rows = trainer(), types.SimpleNamespace(partition_id="val")
    greedy.score_colocated(lambda *args: called.append(args), one, rows)
    assert called == [(one, rows, None)]


def test_attach():
    import numpy as np
    from verl import DataProto

    rewards = torch.zeros(3, 2, dtype=torch.float64)
    uids = np.array(["a", "pad1", "b"], dtype=object)

    def data(**more):
        return DataProto.from_dict({"token_level_rewards": rewards, **more}, non_tensors={"uid": uids})

    outside = data()
    greedy.attach(outside)
    assert "reward_baselines" not in outside.batch
    greedy._baselines.set({"a": 0.5, "pad1": 0.0})
    try:
        inside, given = data(), data(reward_baselines=torch.ones(3))
        greedy.attach(inside)
        greedy.attach(given)
    finally:
        greedy._baselines.set(None)
    expected = torch.tensor([0.5, 0.0, NAN], dtype=torch.float64)
    torch.testing.assert_close(inside.batch["reward_baselines"], expected, equal_nan=True)
    assert given.batch["reward_baselines"].tolist() == [1.0, 1.0, 1.0]
