"""ReMax in verl's v1 trainer: one greedy response per prompt, beside the samples.

verl's legacy trainer decodes greedily for the estimator named ``remax``; its v1 trainer, the default, does
not. Here is what does it for ``remax`` and for every estimator of ours that requires ``reward_baselines``:

1. In an agent-loop worker (hook `verl_greedy_session`) the first session of a prompt also starts a greedy
   one, with the same agent loop and the same reward. It writes no row: the rows of the samples carry its
   reward. So the replay buffer, group filtering, staleness, checkpoints, dumps and throughput see the samples
   and nothing else, and a resumed run finds the rewards where it finds the samples.
2. A reward model that shares its devices with the policy scores in the trainer. Then the rows carry the
   greedy response, and the hook `verl_greedy_colocated` has verl score it together with the samples.
3. In the trainer (hook `verl_greedy_baselines`) the rewards become the batch's ``reward_baselines``.

A failed greedy session fails its prompt: the samples are not handed in, and verl treats the prompt as one
whose sessions all failed. The asynchronous trainers replace it, as does the synchronous one with
``trainer.v1.sampler.sync_refill_failed_groups=True``; otherwise that one trains on the prompts that are left.
"""

import asyncio
import copy
import dataclasses
import functools
import importlib
import logging
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators import patching
from rl_estimators.errors import EstimatorError, InputError, PatchError
from rl_estimators.verl import step_metrics
from rl_estimators.verl.core_algos import estimator_name
from rl_estimators.verl.estimators import spec_of
from rl_estimators.verl.sessions import final_rows

__all__ = ["attach", "check", "providing", "run_session", "score_colocated", "wanted"]

HOOKS = ("verl_greedy_session", "verl_greedy_colocated", "verl_greedy_baselines", "verl_inputs")
GREEDY = {"temperature": 0, "top_p": 1.0, "top_k": -1}  # what verl means by greedy
SESSION = -1  # verl counts the samples' sessions from 0
REWARD, PROMPT, RESPONSE = "rle_greedy_reward", "rle_greedy_prompt", "rle_greedy_response"  # in samples' rows
FAILED = "rle_greedy_failed"  # a partition of the TransferQueue: a key per prompt, for the trainer to count

logger = logging.getLogger(__name__)
_running: dict[str, asyncio.Task[Any]] = {}  # greedy sessions by uid
_baselines: ContextVar[Mapping[str, float] | None] = ContextVar("rl_estimators_greedy", default=None)


# ---------------------------------------------------------------------------------------------- configuration


def wanted(config: Any) -> bool:
    """Whether the estimator in verl's ``config`` cannot do without the reward of a greedy response."""
    name = estimator_name(config.algorithm.adv_estimator)
    if name == "remax":
        return True
    spec = spec_of(name)
    return spec is not None and "reward_baselines" in spec.required


def check(config: Any) -> None:
    """Refuse a configuration that wants greedy responses and would not get them.

    Raises:
        InputError: the legacy trainer is chosen, which makes them for the name ``remax`` only.
        PatchError: a hook is not in force.
    """
    if not wanted(config):
        return
    name = estimator_name(config.algorithm.adv_estimator)
    if not config.trainer.get("use_v1", True):
        if name == "remax":
            return
        raise InputError(
            f"algorithm.adv_estimator={name} with trainer.use_v1=False: verl's legacy trainer decodes "
            "greedily for the name remax only; set algorithm.adv_estimator=remax, or leave trainer.use_v1 at "
            "True"
        )
    for hook in HOOKS:
        patching.require(hook, purpose=f"algorithm.adv_estimator={name}")


# ------------------------------------------------------------------------------------ in an agent-loop worker


async def run_session(
    original: Any,
    worker: Any,
    sampling_params: Mapping[str, Any],
    trajectory: Mapping[str, Any],
    **kwargs: Any,
) -> Any:
    """Run one session of a prompt by ``original``, the worker's own method, and the greedy one beside it.

    The sample's rows are written once the greedy session has ended, and carry what it gave. Runs on a copy of
    the worker, whose methods can be replaced for this session alone.

    Raises:
        EstimatorError: the greedy session failed.
    """
    if trajectory["validate"] or "session_id" not in kwargs or not wanted(worker.config):
        return await original(worker, sampling_params, trajectory, **kwargs)
    uid = kwargs["uid"]
    greedy = _running.get(uid)
    if greedy is None:  # verl starts all sessions of a prompt at once, so the others find this one running
        greedy = asyncio.create_task(_run_greedy(original, worker, sampling_params, trajectory, kwargs))
        _running[uid] = greedy
        greedy.add_done_callback(lambda task: _running.pop(uid, None))
    sampler = copy.copy(worker)
    sampler._compute_score = functools.partial(_score_sample, worker, greedy)
    try:
        return await original(sampler, sampling_params, trajectory, **kwargs)
    finally:
        await asyncio.wait([greedy])  # verl expects nothing to run on after a group's last session


async def _run_greedy(
    original: Any,
    worker: Any,
    sampling_params: Mapping[str, Any],
    trajectory: Mapping[str, Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor] | None:
    """Run the greedy session; return what the samples' rows carry of it, None if it failed."""
    scorer = copy.copy(worker)
    scorer._agent_loop_postprocess = functools.partial(_score_greedy, worker)  # instead of writing rows
    own = {**kwargs, "session_id": SESSION, "trace": False}
    try:
        fields: dict[str, Tensor] = await original(scorer, {**sampling_params, **GREEDY}, trajectory, **own)
        return fields
    except Exception:  # whatever an agent loop, its tools or a reward function raise
        logger.warning(
            "rl_estimators: prompt %s is dropped, as its greedy rollout failed", kwargs["uid"], exc_info=True
        )
    queue = importlib.import_module("transfer_queue")
    await queue.async_kv_put(key=kwargs["uid"], partition_id=FAILED, tag={"step": trajectory["step"]})
    return None


async def _score_greedy(worker: Any, output: Any, validate: bool, **kwargs: Any) -> dict[str, Tensor]:
    """Score the session's outputs as verl does; its reward is that of the final one."""
    outputs = output if isinstance(output, list) else [output]
    if not outputs:
        raise EstimatorError("the agent loop gave no output")
    await worker._compute_score(outputs, kwargs=kwargs)
    final = outputs[-1]
    if worker.reward_loop_worker_handles is None:  # the trainer scores, with a colocated reward model
        ids = {PROMPT: final.prompt_ids, RESPONSE: final.response_ids}
        return {name: torch.tensor(tokens, dtype=torch.int64) for name, tokens in ids.items()}
    if final.reward_score is None or not math.isfinite(final.reward_score):
        raise EstimatorError(f"its reward is {final.reward_score}, expected a finite number")
    return {REWARD: torch.tensor(final.reward_score, dtype=torch.float32)}


async def _score_sample(worker: Any, greedy: Any, outputs: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Score a sample, wait for the greedy session and add what it gave to the fields of the sample's rows."""
    await worker._compute_score(outputs, kwargs=kwargs)
    fields = await asyncio.shield(greedy)  # one cancelled sample must not take the others along
    if fields is None:
        raise EstimatorError(f"prompt {kwargs['uid']} is dropped, as its greedy rollout failed")
    kwargs.update(fields)  # verl writes these as columns of every row


# --------------------------------------------------------------------------------------------- in the trainer


def score_colocated(original: Any, trainer: Any, batch: Any, metrics: Any = None) -> Any:
    """Score a batch by ``original``, the trainer's own method, and the greedy responses along with it.

    They become rows for the length of the call. A prompt whose greedy reward is not finite is dropped.

    Raises:
        PatchError: the rows carry no greedy responses.
        EstimatorError: no prompt is left.
    """
    if batch.partition_id != "train" or not wanted(trainer.config):
        return original(trainer, batch, metrics)
    queue = importlib.import_module("transfer_queue")
    uids, first, prompt_of = np.unique(_uids(batch.keys), return_index=True, return_inverse=True)
    answers = _read(trainer.config, batch, [batch.keys[row] for row in first], RESPONSE, PROMPT, "raw_prompt")
    answers.rename_key_(RESPONSE, "responses").rename_key_(PROMPT, "prompts")
    keys = [f"{uid}_{SESSION}_0" for uid in uids]
    greedy = queue.kv_batch_put(keys=keys, partition_id="train", fields=answers, tags=[{} for _ in keys])
    try:
        rows = {"keys": [*batch.keys, *keys], "tags": [*batch.tags, *greedy.tags]}
        original(trainer, dataclasses.replace(batch, **rows), metrics)
        scored = queue.kv_batch_get(keys=keys, partition_id="train", select_fields=["rm_scores"])
    finally:
        queue.kv_clear(keys=keys, partition_id="train")
    rewards = scored["rm_scores"].sum(dim=1).float()[torch.from_numpy(prompt_of)]
    column = type(answers)({REWARD: rewards}, batch_size=len(batch))
    queue.kv_batch_put(keys=batch.keys, partition_id="train", fields=column)
    return _without_failed(batch, rewards.isfinite().tolist())


def _without_failed(batch: Any, finite: Sequence[bool]) -> Any:
    """Drop the prompts whose greedy reward is not finite; verl fills the batch up with empty rows."""
    if all(finite):
        return batch
    kept = [key for key, good in zip(batch.keys, finite, strict=True) if good]
    dropped = [key for key, good in zip(batch.keys, finite, strict=True) if not good]
    prompts = sorted(set(_uids(dropped)))
    if not kept:
        raise EstimatorError("no prompt is left: the reward model gave no greedy response a finite reward")
    logger.warning(
        "rl_estimators: prompts %s are dropped, as their greedy rewards are not finite", ", ".join(prompts)
    )
    step_metrics.add({"greedy_failed": torch.tensor(len(prompts))})
    importlib.import_module("transfer_queue").kv_clear(keys=dropped, partition_id=batch.partition_id)
    return batch.select_keys(kept)


@contextmanager
def providing(config: Any, batch: Any, metrics: MutableMapping[str, Any]) -> Iterator[None]:
    """Let :func:`attach` find the greedy rewards of the prompts in ``batch``; ``metrics`` tells of them.

    Raises:
        PatchError: the rows carry no greedy rewards.
    """
    if not wanted(config):
        yield
        return
    token = _baselines.set(_collect(config, batch, metrics))
    try:
        yield
    finally:
        _baselines.reset(token)


def attach(data: Any) -> None:
    """Put ``reward_baselines`` ``(B,)`` into verl's ``DataProto``: each response's prompt's greedy reward.

    NaN for a prompt without one, 0 for the empty rows that verl fills a batch up with. Leaves a batch alone
    that has them already, and one that is not being estimated by the v1 trainer.
    """
    known = _baselines.get()
    if known is None or "reward_baselines" in data.batch:
        return
    rewards = [known.get(uid, math.nan) for uid in data.non_tensor_batch["uid"]]
    data.batch["reward_baselines"] = data.batch["token_level_rewards"].new_tensor(rewards)


def _collect(config: Any, batch: Any, metrics: MutableMapping[str, Any]) -> Mapping[str, float]:
    """Read the greedy rewards by uid, compare them with the samples', count the failures."""
    real = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    data = _read(config, batch, real, REWARD, "rm_scores")
    rewards, scores = data[REWARD].numpy(), data["rm_scores"].sum(dim=1).numpy()
    metrics.update(_compare(real, rewards, scores))

    queue = importlib.import_module("transfer_queue")
    failed = list((queue.kv_list(FAILED) or {}).get(FAILED, ()))
    if failed:
        queue.kv_clear(keys=failed, partition_id=FAILED)
    step_metrics.add({"greedy_failed": torch.tensor(len(failed))})
    return {**dict.fromkeys(_uids(batch.keys), 0.0), **dict(zip(_uids(real), rewards.tolist(), strict=True))}


def _compare(keys: Sequence[str], rewards: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Means over prompts; a session counts once, by its final output.

    They go to verl directly, which averages them where a step has several batches; `step_metrics` adds up.
    """
    finals, _ = final_rows(keys)
    uids = _uids([keys[row] for row in finals])
    _, first, prompt_of = np.unique(uids, return_index=True, return_inverse=True)
    greedy = rewards[finals][first]
    sampled = np.bincount(prompt_of, weights=scores[finals]) / np.bincount(prompt_of)
    return {
        "rl_estimators/greedy_reward_mean": float(greedy.mean()),
        "rl_estimators/greedy_wins": float((greedy > sampled).mean()),
    }


def _read(config: Any, batch: Any, keys: Sequence[str], ours: str, *others: str) -> Any:
    """Read columns of rows of ``batch``. verl's queue leaves a column out that not all of the rows have."""
    data = importlib.import_module("transfer_queue").kv_batch_get(
        keys=list(keys), partition_id=batch.partition_id, select_fields=[ours, *others]
    )
    if ours not in data:
        raise PatchError(
            f"algorithm.adv_estimator={estimator_name(config.algorithm.adv_estimator)}: no greedy rollouts in the batch, some rows have no "
            f"{ours}. The agent-loop workers run without the hook {HOOKS[0]}: run `rl-estimators doctor` on "
            "every node. Samples that a run with another estimator left in a checkpoint or a rollout dump "
            "lack them too: remove the checkpoint's folder transfer_queue, or the dump."
        )
    return data


def _uids(keys: Sequence[str]) -> list[str]:
    """The prompts of verl's keys, ``{uid}_{session}_{output}``."""
    return [key.rsplit("_", 2)[0] for key in keys]
