"""Advantages of a batch of completions, over all processes at once.

A group may straddle processes, and whitening wants the whole batch. So what the estimator asks for is gathered, every
process runs the estimator on all of it, in the same order, and keeps its own rows.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from torch import Tensor
from torch.nn import functional
from trl.models.utils import disable_gradient_checkpointing

from rl_estimators import shaping
from rl_estimators.calls import estimate
from rl_estimators.metrics import collect_metrics
from rl_estimators.trl import rewards, upstream
from rl_estimators.trl.diagnostics import SOUND
from rl_estimators.trl.rewards import Scored

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["add", "collapse"]


@torch.no_grad()
def add(trainer: "EstimatorTrainer", batch: dict[str, Any], scored: Scored) -> dict[str, Any]:
    """Put our advantages, and a critic's values and targets, into TRL's batch of this process."""
    mode, mask = trainer.mode, upstream.response_mask(batch)
    if trainer.estimator_options.get("compat") == "trl":
        mask = _all_counted(mask)
    local = _inputs(trainer, batch, scored, mask, mode)
    everywhere: dict[str, Any] = {**_gather(trainer, local)}
    everywhere.update(_known_everywhere(trainer, scored, len(everywhere["response_mask"]), mode))
    with collect_metrics() as counts:
        result = estimate(trainer.estimator.name, **everywhere, **trainer.estimator_options)
    rows, width = _own_rows(trainer, mask), mask.shape[1]
    advantages = collapse(result.advantages, everywhere["response_mask"])
    per_response = _per_response(advantages, everywhere["response_mask"])
    batch["advantages"] = advantages[rows] if advantages.ndim == 1 else advantages[rows, :width].contiguous()
    if trainer.critic is not None:
        batch["values"] = local["values"]
        batch["returns"] = result.returns[rows, :width].to(local["values"].dtype).contiguous()
        sound = _sound(everywhere)
        batch[SOUND] = sound[rows]
        judged = everywhere["response_mask"] & sound[:, None]
        trainer.critic.log_rollout(everywhere["values"], result.returns, judged, mode)
    if trainer.diagnostics is not None:
        trainer.diagnostics.log_batch(everywhere, result, scored, mode)
    _log(trainer, mode, counts, per_response)
    return batch


def collapse(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """``(B,)`` if no response has two tokens with different advantages, else ``(B, T)`` as it is.

    For TRL an advantage per completion is ``(B,)``. With ratios per sequence it computes and logs the same numbers as
    ever only if it gets that.

    Args:
        advantages: ``(B, T)``.
        response_mask: ``(B, T)`` bool.
    """
    high = torch.where(response_mask, advantages, -torch.inf).amax(-1)
    low = torch.where(response_mask, advantages, torch.inf).amin(-1)
    written = response_mask.any(-1)
    if bool(((high == low) | ~written).all()):
        return torch.where(written, high, 0)
    return advantages


def _all_counted(mask: Tensor) -> Tensor:
    """The mask with a first token for completions that have none left.

    TRL's ``mask_truncated_completions`` takes them out of the loss, but not out of their group's mean. Our estimators
    leave them out of both.
    """
    counted = mask.clone()
    counted[:, 0] |= ~mask.any(-1)
    return counted


def _inputs(
    trainer: "EstimatorTrainer", batch: dict[str, Any], scored: Scored, mask: Tensor, mode: str
) -> dict[str, Tensor]:
    """What the estimator asks for, of this process."""
    assert scored.rewards_per_func is not None  # TRL has scored the batch
    own = _own_rows(trainer, mask)
    config = trainer.args
    given = {
        "response_mask": mask,
        "token_level_rewards": rewards.token_level(
            rewards.scores(scored.rewards_per_func, trainer.reward_weights)[own],
            mask,
            scored.token_rewards,
            config.token_reward_weights,
        ),
    }
    scored.scores = given["token_level_rewards"].sum(-1)
    if config.kl_in_reward or _wants_old_log_probs(trainer, batch):
        given["old_log_probs"] = _old_log_probs(trainer, batch, mode)
    if config.kl_in_reward:
        charged = (given["token_level_rewards"], given["old_log_probs"], batch["ref_per_token_logps"], mask)
        beta, penalty = trainer.kl_controller.value, config.kl_penalty
        given["token_level_rewards"] = shaping.kl_in_reward(*charged, beta, penalty)
        _steer_kl(trainer, mode, shaping.kl_penalty(*charged[1:], penalty), mask)
    if trainer.critic is not None:
        values, after = trainer.critic.values(batch)
        given["values"] = torch.where(mask, values, 0)
        if config.bootstrap_truncated:
            assert scored.truncated is not None
            given.update(truncated=scored.truncated, bootstrap_values=after)
    for name, key in (
        ("ref_log_prob", "ref_per_token_logps"),
        ("rollout_log_probs", "sampling_per_token_logps"),
    ):
        if trainer.wants(name) and batch.get(key) is not None:
            given[name] = batch[key]
    return given


def _old_log_probs(trainer: "EstimatorTrainer", batch: dict[str, Any], mode: str) -> Tensor:
    """``(B, T)`` log-probabilities under the policy that sampled; computed, and kept in the batch, if TRL has not."""
    if batch.get("old_per_token_logps") is None:
        args = trainer.args
        rows = args.per_device_train_batch_size if mode == "train" else args.per_device_eval_batch_size
        with disable_gradient_checkpointing(trainer.model, args.gradient_checkpointing_kwargs):
            batch["old_per_token_logps"] = upstream.log_probs(trainer, trainer.model, batch, rows)[0]
    found: Tensor = batch["old_per_token_logps"]
    return found


def _sound(everywhere: dict[str, Any]) -> Tensor:
    """``(B,)`` bool: completions that say something about the critic.

    An estimator leaves out a completion with a number that is not finite, and returns its old values there, which
    would count as perfectly foreseen.
    """
    mask: Tensor = everywhere["response_mask"]
    sound = [
        torch.where(mask, everywhere[name], 0).isfinite().all(-1)
        for name in ("token_level_rewards", "values")
    ]
    return sound[0] & sound[1]


def _wants_old_log_probs(trainer: "EstimatorTrainer", batch: dict[str, Any]) -> bool:
    """An estimator that can do without them gets them where they cost nothing, or beside a reference's."""
    if "old_log_probs" in trainer.estimator.required:
        return True
    at_hand = batch.get("old_per_token_logps") is not None or trainer.beta != 0
    return at_hand and trainer.wants("old_log_probs")


def _known_everywhere(trainer: "EstimatorTrainer", scored: Scored, rows: int, mode: str) -> dict[str, Any]:
    """What every process already has of all completions."""
    size = trainer.num_generations if mode == "train" else trainer.num_generations_eval
    known: dict[str, Any] = {"index": [row // size for row in range(rows)]}
    if trainer.wants("reward_components"):
        known["reward_components"] = scored.rewards_per_func
    if scored.reward_baselines is not None:
        known["reward_baselines"] = scored.reward_baselines
    return known


def _gather(trainer: "EstimatorTrainer", local: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes, padded on the right to one width."""
    if trainer.accelerator.num_processes == 1:
        return local
    mask = local["response_mask"]
    # by hand: accelerate's pad_across_processes turns a mask of bools into integers where it pads it
    width = int(gather(torch.tensor([mask.shape[1]], device=mask.device)).max())
    padded = {
        name: functional.pad(tensor, (0, width - tensor.shape[1])) if tensor.ndim > 1 else tensor
        for name, tensor in local.items()
    }
    return {name: gather(tensor.contiguous()) for name, tensor in padded.items()}


def _own_rows(trainer: "EstimatorTrainer", mask: Tensor) -> slice:
    first = trainer.accelerator.process_index * len(mask)
    return slice(first, first + len(mask))


def _per_response(advantages: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` mean advantage of a response's tokens."""
    if advantages.ndim == 1:
        return advantages
    return torch.where(mask, advantages, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def _steer_kl(trainer: "EstimatorTrainer", mode: str, kl: Tensor, mask: Tensor) -> None:
    """Log the KL divergence as TRL does where it is part of the loss, and set its factor for the next batch."""
    sums = torch.stack([kl.sum(), mask.sum(), mask.any(-1).sum()])
    total, tokens, responses = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    mean = total / max(tokens, 1)
    trainer._metrics[mode]["kl"].append(mean)
    trainer._metrics[mode]["rl_estimators/kl_coef"].append(trainer.kl_controller.value)
    if mode == "train" and math.isfinite(mean):
        trainer.kl_controller.update(mean, int(responses))


def _log(trainer: "EstimatorTrainer", mode: str, counts: dict[str, Tensor], per_response: Tensor) -> None:
    metrics = trainer._metrics[mode]
    for name, number in counts.items():
        metrics[f"rl_estimators/{name}"].append(float(number))
    column = trainer._logs["advantages"]  # TRL has appended its own for these completions
    for _ in range(min(len(per_response), len(column))):
        column.pop()
    column.extend(per_response.tolist())
