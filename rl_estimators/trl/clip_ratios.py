"""Which tokens the clip holds, in the numbers that TRL's dashboards show: ``clip_ratio/low_*``, ``high_*``.

TRL's own losses log them; here they are of the losses of ours that clip, each by the ratio and the bounds that it has
itself. A token is held at the lower bound where its advantage is negative, at the upper where it is positive.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rl_estimators.aggregation import masked_mean
from rl_estimators.masked import select
from rl_estimators.policy_losses.ratio import row_mean
from rl_estimators.registry import POLICY_LOSSES

__all__ = ["Held", "held", "per_response", "shares"]

Held = tuple[Tensor, Tensor]


def held(
    name: str,
    options: Mapping[str, Any],
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
) -> Held | None:
    """``(B, T)`` bool each: tokens held at the lower bound and at the upper; None for a loss that has none of ours.

    Args:
        name: A policy loss.
        options: Those that were given for it.
        old_log_prob: ``(B, T)``, as all tensors; anything where ``mask`` is false.
        log_prob: In training.
        advantages: As the loss gets them.
        mask: bool.
    """
    kind = _KINDS.get(name)
    if kind is None:
        return None
    low, high = (
        options.get(option, POLICY_LOSSES.spec(name).options[option])
        for option in ("clip_ratio_low", "clip_ratio_high")
    )
    log_ratio = select(log_prob.detach(), mask) - select(old_log_prob, mask)
    below, above = kind(log_ratio, select(advantages, mask), mask, low, high)
    return below & mask, above & mask


def _by_token(log_ratio: Tensor, gain: Tensor, mask: Tensor, low: float, high: float) -> Held:
    ratio = log_ratio.exp()
    return (ratio < 1 - low) & (gain < 0), (ratio > 1 + high) & (gain > 0)


def _by_response(log_ratio: Tensor, gain: Tensor, mask: Tensor, low: float, high: float) -> Held:
    """GSPO: one ratio for all tokens of a response."""
    return _by_token(row_mean(log_ratio, mask), gain, mask, low, high)


def _by_logarithm(log_ratio: Tensor, gain: Tensor, mask: Tensor, low: float, high: float) -> Held:
    """GMPO: distances of logarithms, and the response's advantage."""
    gain = row_mean(gain, mask)
    return (log_ratio < -low) & (gain < 0), (log_ratio > high) & (gain > 0)


_KINDS: Mapping[str, Callable[..., Held]] = {
    "ppo_clip": _by_token,
    "clip_cov": _by_token,
    "cispo": _by_token,
    "gspo": _by_response,
    "gmpo": _by_logarithm,
}


def shares(name: str, held: Held, mask: Tensor) -> dict[str, Tensor]:
    """Shares of tokens under TRL's names, 0-dim each. For CISPO it counts the upper bound alone, by a name of its own."""
    low, high = (masked_mean(x.float(), mask) for x in held)
    if name == "cispo":
        return {"cispo_clip_ratio": high}
    return {f"clip_ratio/{end}_mean": x for end, x in (("low", low), ("high", high), ("region", low + high))}


def per_response(held: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` the share of each response's tokens; NaN in one without any."""
    number = mask.sum(-1)
    return torch.where(number > 0, held.sum(-1) / number, torch.nan)
