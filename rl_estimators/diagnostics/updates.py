"""Sums while a policy or a critic trains, and the numbers they make.

A framework trains on micro-batches, in several processes and mini-batches. A mean, a deviation, a share of what is lost
cannot be averaged from part to part without weights; sums can be added up. So each part gives sums, and the numbers are
made of all of them at the end. A common factor of all sums changes nothing, so that their means do as well.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rl_estimators.backends.rows import widest
from rl_estimators.masked import as_mask
from rl_estimators.policy_losses.ratio import MAX_LOG_RATIO

__all__ = ["add_sums", "policy_numbers", "policy_sums", "value_numbers", "value_sums"]

_FLAT = 1e-12  # a variance that is no more of the squared mean is rounding


@torch.no_grad()
def policy_sums(
    log_prob: Tensor, old_log_probs: Tensor, response_mask: Tensor, ref_log_prob: Tensor | None = None
) -> dict[str, Tensor]:
    """Sums over valid tokens, 0-dim each; ``ratio_min`` and ``ratio_max`` are extremes.

    Args:
        log_prob: ``(B, T)`` log-probabilities (nats) under the policy in training.
        old_log_probs: ``(B, T)`` under the one before the update.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        ref_log_prob: ``(B, T)`` under the reference model.
    """
    mask, dtype = as_mask(response_mask), widest(log_prob.device)
    old = torch.where(mask, old_log_probs, 0).to(dtype)
    log_ratio = torch.where(mask, log_prob, 0).to(dtype) - old
    apart = torch.expm1(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    found = {
        "policy_tokens": mask.sum().to(dtype),
        "ratio_apart": apart.sum(),
        "ratio_apart_squares": apart.square().sum(),
        "policy_kl": (apart - log_ratio).sum(),
        "ratio_min": _end(apart, mask, torch.inf, "amin") + 1,
        "ratio_max": _end(apart, mask, -torch.inf, "amax") + 1,
    }
    if ref_log_prob is not None:
        found["reference_kl"] = (old - torch.where(mask, ref_log_prob, 0).to(dtype)).sum()
    return found


def policy_numbers(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diagnostics that :func:`policy_sums` amount to, by name; NaN without tokens."""
    number = sums["policy_tokens"]
    number = torch.where(number > 0, number, torch.nan)
    apart, squares = sums["ratio_apart"] / number, sums["ratio_apart_squares"] / number
    found = {
        "ratio_mean": 1 + apart,
        "ratio_std": (squares - apart.square()).clamp(min=0).sqrt(),
        "ratio_min": sums["ratio_min"],
        "ratio_max": sums["ratio_max"],
        "effective_sample_size": (1 + apart).square() / (1 + 2 * apart + squares),
        "policy_kl": sums["policy_kl"] / number,
    }
    if "reference_kl" in sums:
        found["reference_kl"] = sums["reference_kl"] / number
    return {name: torch.where(number > 0, x, torch.nan) for name, x in found.items()}


@torch.no_grad()
def value_sums(
    values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    vpreds: Tensor | None = None,
    cliprange_value: float | None = None,
) -> dict[str, Tensor]:
    """Sums over valid tokens, 0-dim each.

    Args:
        values: ``(B, T)`` the critic's values when the rollouts were made, in units of reward.
        returns: ``(B, T)`` its targets.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        vpreds: ``(B, T)`` values in training.
        cliprange_value: Of the clipped value loss; None with another one.
    """
    mask, dtype = as_mask(response_mask), widest(values.device)
    old, target = (torch.where(mask, x, 0).to(dtype) for x in (values, returns))
    found = {
        "value_tokens": mask.sum().to(dtype),
        "value_targets": target.sum(),
        "value_target_squares": target.square().sum(),
        "value_old_errors": (target - old).sum(),
        "value_old_error_squares": (target - old).square().sum(),
    }
    if vpreds is None:
        return found
    new = torch.where(mask, vpreds, 0).to(dtype)
    error = target - new
    found |= {"value_errors": error.sum(), "value_error_squares": error.square().sum()}
    if cliprange_value is not None:
        near = new.clamp(old - cliprange_value, old + cliprange_value)
        found["value_clips"] = ((near - target).square() > error.square()).sum().to(dtype)
    return found


def value_numbers(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diagnostics that :func:`value_sums` amount to, by name; NaN where not defined."""
    number, targets = sums["value_tokens"], (sums["value_targets"], sums["value_target_squares"])
    found = {}
    for name, errors in (
        ("explained_variance_before", "value_old_error"),
        ("explained_variance_after", "value_error"),
    ):
        if f"{errors}s" in sums:
            found[name] = _explained(number, *targets, sums[f"{errors}s"], sums[f"{errors}_squares"])
    if "value_clips" in sums:
        found["value_clip_share"] = sums["value_clips"] / number
    return found


def add_sums(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums of two parts together; extremes of both."""
    if not first or not second:
        return {**first, **second}
    joins = {"ratio_min": torch.minimum, "ratio_max": torch.maximum}
    return {name: joins.get(name, torch.add)(first[name], second[name]) for name in first}


def _explained(
    number: Tensor, targets: Tensor, squares: Tensor, errors: Tensor, error_squares: Tensor
) -> Tensor:
    """1 - Var(R - V) / Var(R) from sums and sums of squares; NaN where all targets are equal."""
    mean = targets / number
    variance = squares / number - mean.square()
    left = (error_squares / number - (errors / number).square()).clamp(min=0)
    return torch.where(variance > _FLAT * mean.square(), 1 - left / variance, torch.nan)


def _end(x: Tensor, mask: Tensor, otherwise: float, which: str) -> Tensor:
    if not x.numel():
        return x.new_tensor(otherwise)
    found: Tensor = getattr(torch.where(mask, x, otherwise), which)()
    return found
