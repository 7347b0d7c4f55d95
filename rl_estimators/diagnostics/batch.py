"""All diagnostics of a batch, from whatever of it is at hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators.backends import torch_rows
from rl_estimators.backends.rows import widest
from rl_estimators.diagnostics.groups import score_numbers
from rl_estimators.diagnostics.tokens import Tokens, mean_difference, parts, read, valid_tokens
from rl_estimators.diagnostics.updates import (
    add_sums,
    policy_numbers,
    policy_sums,
    value_numbers,
    value_sums,
)
from rl_estimators.errors import InputError
from rl_estimators.fields import check
from rl_estimators.masked import as_mask, group_ids

__all__ = ["diagnose", "loggable", "measure"]

# Each input that says nothing without another one.
_TOGETHER = (
    ("returns", "values"),
    ("values", "returns"),
    ("log_prob", "old_log_probs"),
    ("ref_log_prob", "old_log_probs"),
    ("vpreds", "values"),
    ("cliprange_value", "vpreds"),
)


@torch.no_grad()
def diagnose(
    *,
    response_mask: Tensor,
    advantages: Tensor | None = None,
    returns: Tensor | None = None,
    values: Tensor | None = None,
    token_level_rewards: Tensor | None = None,
    index: "np.ndarray[Any, Any] | Sequence[Any] | Tensor | None" = None,
    truncated: Tensor | None = None,
    log_prob: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    ref_log_prob: Tensor | None = None,
    vpreds: Tensor | None = None,
    cliprange_value: float | None = None,
) -> dict[str, Tensor]:
    """Compute every diagnostic that the inputs allow; see :data:`~rl_estimators.diagnostics.DIAGNOSTICS` for each.

    What is stored at a masked position, NaN included, is not read. A response whose score is not finite is left out
    of the scores' numbers and counted as ``excluded_responses``; its advantages, 0 from an estimator of ours, count as
    they are. A response without valid tokens is a framework's padding row, and does not count, unless it was cut off:
    TRL masks such ones as a whole. A number that is not defined, such as a deviation of one number, a share of no groups
    or an explained variance of equal targets, is NaN, and :func:`loggable` leaves it out.

    Nothing is read back from a device: the numbers are tensors there until somebody logs them.

    Args:
        response_mask: ``(B, T)``, 1 on the tokens the policy wrote and 0 elsewhere, in any dtype.
        advantages: ``(B, T)`` as they go to the policy loss.
        returns: ``(B, T)`` the critic's targets.
        values: ``(B, T)`` the critic's values when the rollouts were made.
        token_level_rewards: ``(B, T)``; a response's score is their sum. Pass rewards without a KL penalty, lest a right
            answer scores less than 1.
        index: ``(B,)`` the prompt of each response.
        truncated: ``(B,)``, 1 on responses that were cut off.
        log_prob: ``(B, T)`` log-probabilities (nats) under the policy in training.
        old_log_probs: ``(B, T)`` under the policy before the update.
        ref_log_prob: ``(B, T)`` under the reference model.
        vpreds: ``(B, T)`` the critic's values in training.
        cliprange_value: Of the clipped value loss, in units of reward.

    Returns:
        0-dim tensors by name.

    Raises:
        InputError: inputs do not fit each other, or one is given without another that it needs.

    Example:
        >>> import torch
        >>> from rl_estimators import diagnose, estimate
        >>> batch = {"token_level_rewards": torch.tensor([[1.0], [0.0], [0.0], [0.0]]), "response_mask": torch.ones(4, 1),
        ...     "index": ["p", "p", "q", "q"]}
        >>> float(diagnose(advantages=estimate("grpo", **batch).advantages, **batch)["zero_advantage_prompt_share"])
        0.5
    """
    given = {name: value for name, value in locals().items() if value is not None}
    for name, other in _TOGETHER:
        if name in given and other not in given:
            raise InputError(f"diagnose: {name} is given without {other}; give both, or neither")
    check("diagnose", {name: value for name, value in given.items() if name != "cliprange_value"}, ())
    scores = given.pop("token_level_rewards", None)
    if scores is not None:
        given["scores"] = _scores(scores, response_mask)
    return measure(given)


def _scores(rewards: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` each response's sum, NaN or infinite where it has no usable one."""
    if not rewards.numel():
        return rewards.new_zeros(len(rewards), dtype=widest(rewards.device))
    found = torch_rows.scores(rewards, mask)
    return torch.where(found.counts | ~found.written, found.total, torch.nan)


@torch.no_grad()
def measure(given: Mapping[str, Any], clean: bool = False) -> dict[str, Tensor]:
    """As :func:`diagnose`, for adapters: nothing is checked, and what they know already is not worked out again.

    Args:
        given: What :func:`diagnose` takes, by name, and ``scores``, ``(B,)``, in place of ``token_level_rewards``.
        clean: Advantages and returns are 0 where masked, as estimators of ours leave them.
    """
    mask, scores, truncated = given["response_mask"], given.get("scores"), given.get("truncated")
    ids = group_ids(given["index"], mask.device) if "index" in given else None
    found: dict[str, Tensor] = {}
    if "advantages" in given:
        tokens = read(given["advantages"], mask, clean)
        number = tokens.number
        found |= _of_advantages(tokens, ids)
    else:
        number = valid_tokens(mask)
    written = sound = number > 0
    if scores is not None:
        scores = scores.to(widest(scores.device))
        sound = written & scores.isfinite()
        found |= score_numbers(scores, sound, ids) | {"excluded_responses": (written & ~sound).sum()}
    if truncated is not None:
        found["truncated_response_share"] = _share(as_mask(truncated), written | as_mask(truncated))
    return found | _of_policy(given) | _of_critic(given, sound)


def _of_policy(given: Mapping[str, Any]) -> dict[str, Tensor]:
    mask, reference = given["response_mask"], given.get("ref_log_prob")
    if "log_prob" in given:
        return policy_numbers(policy_sums(given["log_prob"], given["old_log_probs"], mask, reference))
    if reference is not None:
        return {"reference_kl": mean_difference(given["old_log_probs"], reference, mask)}
    return {}


def _of_critic(given: Mapping[str, Any], sound: Tensor) -> dict[str, Tensor]:
    """Without the responses that the estimator left out, whose targets are their own old values."""
    if "values" not in given:
        return {}
    columns = [given[name] for name in ("values", "returns", "vpreds") if name in given]
    sums: dict[str, Tensor] = {}
    for mask, rows, old, target, *new in parts(given["response_mask"], sound[:, None], *columns):
        on = as_mask(mask) & rows
        on = on & torch.where(on, old + target, 0).isfinite().all(-1, keepdim=True)
        vpreds = new[0] if new else None
        sums = add_sums(sums, value_sums(old, target, on, vpreds, given.get("cliprange_value")))
    return value_numbers(sums)


def loggable(found: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers as floats, without those that are not finite; one copy from the device."""
    if not found:
        return {}
    numbers = torch.stack([x.to(widest(x.device)) for x in found.values()]).tolist()
    return {name: number for name, number in zip(found, numbers, strict=True) if math.isfinite(number)}


def _of_advantages(tokens: Tokens, ids: Tensor | None) -> dict[str, Tensor]:
    number = tokens.number.sum()
    mean = tokens.total.sum() / number
    squares = (tokens.squares.sum() - number * mean.square()).clamp(min=0)
    std = (squares / (number - 1).clamp(min=0)).sqrt()
    found = {
        "zero_advantage_token_share": 1 - tokens.nonzero.sum() / number,
        "advantage_mean": mean,
        "advantage_std": torch.where((tokens.low == tokens.high) & (number > 1), 0, std),
        "advantage_min": tokens.low,  # infinite if there is none
        "advantage_max": tokens.high,
    }
    if ids is not None:
        counted = torch.zeros_like(tokens.number).index_add(0, ids, tokens.number) > 0
        moved = torch.zeros_like(tokens.number).index_add(0, ids, tokens.nonzero)
        found["zero_advantage_prompt_share"] = _share(moved == 0, counted)
    return found


def _share(these: Tensor, among: Tensor) -> Tensor:
    """0-dim; NaN of nothing."""
    return (these & among).sum() / among.sum()
