"""Diagnostics in verl's log: of a batch where an estimator of ours runs, of the updates from the sums of the workers.

Off with ``+rl_estimators.diagnostics=False``. What concerns the updates is there where the run has an estimator or a loss
of ours; a run without any logs what it did.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.diagnostics import PREFIX, loggable, measure
from rl_estimators.diagnostics.updates import policy_numbers, value_numbers
from rl_estimators.masked import as_mask
from rl_estimators.registry import Estimate, Spec
from rl_estimators.verl.worker_losses import SUMS

__all__ = ["KEY", "finish", "of_batch", "select", "switched_on"]

KEY = "rl_estimators.diagnostics"
_LIMITS = ("actor_rollout_ref.rollout.response_length", "data.max_response_length")


def switched_on(algorithm: Any) -> bool:
    """Whether the configuration that ``algorithm`` is a node of leaves diagnostics on."""
    value = select(algorithm, KEY)
    if value is None:
        return True
    from omegaconf import BooleanNode

    return bool(BooleanNode(value)._value())  # 0 and "off" are False, as in the settings


def of_batch(spec: Spec, algorithm: Any, given: Mapping[str, Any], result: Estimate) -> dict[str, float]:
    """What a batch says once its advantages are there.

    Args:
        spec: The estimator.
        algorithm: verl's ``algorithm`` configuration, a node of the whole.
        given: The estimator's inputs, and verl's ``batch``.
        result: What it returned.
    """
    mask = given["response_mask"]
    wanted: dict[str, Any] = {"response_mask": mask, "advantages": result.advantages}
    wanted["scores"] = _scores(given)
    if "index" in given:
        wanted["index"] = given["index"]
    truncated = given.get("truncated", _at_the_limit(mask, algorithm))
    if truncated is not None:
        wanted["truncated"] = truncated
    charged = algorithm is not None and algorithm.get("use_kl_in_reward")
    if charged and "old_log_probs" in given and "ref_log_prob" in given:  # in the loss: see policy_updates
        wanted |= {name: given[name] for name in ("old_log_probs", "ref_log_prob")}
    found = measure(wanted, clean=spec.is_ours)
    del found["excluded_responses"]  # the estimator has counted them
    return loggable(found)


def finish(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What verl is about to log, with diagnostics in place of the workers' sums; the same object if it has none."""
    if not any(SUMS in key for key in data):
        return data
    sums = {
        key.partition(SUMS)[2]: torch.tensor(float(number), dtype=torch.float64)
        for key, number in data.items()
        if SUMS in key
    }
    found: dict[str, Tensor] = {}
    if "policy_tokens" in sums:
        found |= policy_numbers(sums)
    if "value_tokens" in sums:
        found |= value_numbers(sums)
    rest = {key: number for key, number in data.items() if SUMS not in key}
    return {**rest, **{PREFIX + name: number for name, number in loggable(found).items()}}


def _scores(given: Mapping[str, Any]) -> Tensor:
    """``(B,)`` sum of each response's scores, without a KL penalty, wherever in the row they stand.

    As an estimator has them, whose rewards on masked tokens are carried to valid ones if they are finite.
    """
    batch, rewards = given.get("batch"), given["token_level_rewards"]
    if batch is not None and "token_level_scores" in batch:
        rewards = batch["token_level_scores"]
    scores: Tensor = rewards.sum(-1)
    odd = ~scores.isfinite()
    if odd.any():
        on = as_mask(given["response_mask"][odd])
        some = rewards[odd]
        scores[odd] = torch.where(on | some.isfinite(), some, 0).sum(-1)
    return scores


def _at_the_limit(mask: Tensor, algorithm: Any) -> Tensor | None:
    """``(B,)`` bool: the policy wrote the last token that the limit allows; None if nobody knows the limit."""
    limits = [limit for limit in (select(algorithm, key) for key in _LIMITS) if isinstance(limit, int)]
    if not limits:
        return None
    if mask.shape[1] < limits[0]:  # the v1 trainer pads to the longest response
        return torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    return as_mask(mask[:, limits[0] - 1])


def select(node: Any, key: str) -> Any:
    """A value of the configuration that ``node`` belongs to; None if it belongs to none, or that has no such key."""
    from omegaconf import OmegaConf

    return OmegaConf.select(node._get_root(), key) if OmegaConf.is_config(node) else None
