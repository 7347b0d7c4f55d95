"""A response that the length limit cut off ends in the critic's value instead of 0, in verl's v1 trainer.

verl's critic gives a value after every token of prompt and response. The trainer keeps those that stand before a
response's tokens and drops the last one, the value of the state that a truncated response ends in. With
``+rl_estimators.bootstrap_truncated=True``

1. the hook `verl_bootstrap` keeps it, and whether the response was cut off, as columns of verl's queue;
2. the hook `verl_sessions`, which is where the rows' keys are known, hands them to an estimator that asks for
   ``truncated`` and ``bootstrap_values``.

A response was cut off if it is as long as ``actor_rollout_ref.rollout.response_length`` allows, tool output included,
and does not end in the tokenizer's end token. (One that ends in another token that stops the engine, exactly at the
limit, counts as cut off.)
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rl_estimators import patching
from rl_estimators.errors import InputError, PatchError
from rl_estimators.registry import ADV_ESTIMATORS, Spec
from rl_estimators.verl.core_algos import estimator_name
from rl_estimators.verl.estimators import PREFIX, spec_of
from rl_estimators.verl.trainers import is_experimental

__all__ = ["FIELDS", "KEY", "attach", "check", "compute_values", "wanted"]

KEY = "rl_estimators.bootstrap_truncated"
FIELDS = ("truncated", "bootstrap_values")
HOOKS = ("verl_bootstrap", "verl_sessions", "verl_inputs")
_COLUMNS = tuple(f"rle_{field}" for field in FIELDS)
_TRAINER = "verl.trainer.ppo.v1.trainer_base"


def wanted(config: Any) -> bool:
    """Whether verl's whole ``config`` asks for it; a value that is neither true nor false is the settings' to refuse."""
    from omegaconf import BooleanNode, OmegaConf
    from omegaconf.errors import ValidationError

    try:
        return bool(
            BooleanNode(OmegaConf.select(config, KEY))._value()
        )  # 1 and "on" are True, as in the settings
    except ValidationError:
        return False


def check(name: str, spec: Spec | None, config: Any) -> None:
    """Refuse to be asked for where nothing would come of it.

    Args:
        name: The estimator as the configuration has it.
        spec: What it is; None if it is none of ours.
        config: verl's whole configuration.

    Raises:
        InputError: the estimator does not read the two inputs, or the trainer cannot give them.
        PatchError: a hook is not in force.
    """
    if not wanted(config):
        return
    asked = f"{KEY}=True with algorithm.adv_estimator={name}"
    if spec is None or not all(spec.asks_for(field) for field in FIELDS):
        ours = [
            PREFIX + own for own in ADV_ESTIMATORS.names() if ADV_ESTIMATORS.spec(own).asks_for(FIELDS[0])
        ]
        raise InputError(
            f"{asked}, which does not read {' and '.join(FIELDS)}: it would have no effect. Remove it, or take one of "
            f"{', '.join(ours)}"
        )
    if is_experimental(config) or not config.trainer.get("use_v1", True):
        which = "verl's experimental trainers" if is_experimental(config) else "trainer.use_v1=False"
        raise InputError(
            f"{asked}: {which} cannot give what it needs; remove it, or train with verl.trainer.main_ppo and leave "
            "trainer.use_v1 at True"
        )
    rollout = config.actor_rollout_ref.rollout
    most, whole = rollout.get("max_model_len"), rollout.prompt_length + rollout.response_length
    if most is not None and most < whole:
        raise InputError(
            f"{KEY}=True with actor_rollout_ref.rollout.max_model_len={most}, which may cut a response off before "
            f"response_length={rollout.response_length} does, and then it would count as finished. Set max_model_len to "
            f"{whole} (prompt_length + response_length) or more"
        )
    for hook in HOOKS:
        patching.require(hook, purpose=f"{KEY}=True")


def compute_values(original: Callable[..., Any], trainer: Any, batch: Any, metrics: Any) -> Any:
    """Have ``original``, the trainer's own method, compute values, and keep what it drops.

    Raises:
        PatchError: it does not cut the values as it did when it was read.
    """
    if not wanted(trainer.config):
        return original(trainer, batch, metrics)
    with _watching() as seen:
        result = original(trainer, batch, metrics)
    if len(seen) != 1 or len(seen[0]) != len(batch.keys):
        raise PatchError(
            f"{KEY}=True: verl's {_TRAINER} no longer cuts the critic's values as reviewed; remove the setting, and run "
            "`rl-estimators doctor`"
        )
    queue = importlib.import_module("transfer_queue")
    rows: dict[str, Any] = {"keys": batch.keys, "partition_id": batch.partition_id}
    data = queue.kv_batch_get(**rows, select_fields=["responses", "response_mask"])
    limit = trainer.config.actor_rollout_ref.rollout.response_length
    cut = _cut_off(data["responses"], data["response_mask"], limit, trainer.tokenizer.eos_token_id)
    columns = dict(zip(_COLUMNS, (cut, seen[0]), strict=True))
    queue.kv_batch_put(**rows, fields=type(data)(columns, batch_size=len(batch.keys)))
    return result


def attach(data: Any, batch_keys: Sequence[str], adv_estimator: Any, config: Any) -> None:
    """Put ``truncated`` and ``bootstrap_values``, ``(B,)`` each, into verl's ``DataProto``, if they are wanted.

    Args:
        data: The batch, a row for each key.
        batch_keys: The rows' keys in verl's queue.
        adv_estimator: The estimator, as verl's configuration names it.
        config: verl's ``algorithm`` configuration, a node of the whole.

    Raises:
        PatchError: the rows lack them.
    """
    spec = spec_of(estimator_name(adv_estimator))
    root = getattr(config, "_get_root", lambda: None)()
    if spec is None or root is None or not wanted(root):
        return
    queue = importlib.import_module("transfer_queue")
    found = queue.kv_batch_get(keys=list(batch_keys), partition_id="train", select_fields=[*_COLUMNS])
    for field, column in zip(FIELDS, _COLUMNS, strict=True):
        if column not in found:
            raise PatchError(
                f"{KEY}=True: no {column} in the batch, so the hook {HOOKS[0]} did not run in the trainer's process; "
                "run `rl-estimators doctor` there"
            )
        data.batch[field] = found[column]


@contextmanager
def _watching() -> Iterator[list[Tensor]]:
    """``(B,)`` the last of each sequence's values, of every batch that the trainer cuts to its responses meanwhile."""
    module = importlib.import_module(_TRAINER)
    original, seen = vars(module)["response_from_nested"], []

    def response_from_nested(tensor: Any, response_mask: Any) -> Any:
        seen.append(tensor.values()[tensor.offsets()[1:] - 1].float())
        return original(tensor, response_mask)

    vars(module)["response_from_nested"] = response_from_nested
    try:
        yield seen
    finally:
        vars(module)["response_from_nested"] = original


def _cut_off(responses: Any, mask: Any, limit: int, end: int | Sequence[int]) -> Tensor:
    """``(B,)`` bool; both are nested, a row for each response. What a tool wrote is not the policy's end token."""
    offsets: Tensor = responses.offsets()
    last = offsets[1:] - 1
    ends = torch.as_tensor(end, device=last.device).reshape(-1)
    ended: Tensor = torch.isin(responses.values()[last], ends) & (mask.values()[last] != 0)
    return (offsets.diff() >= limit) & ~ended
