"""What is logged about a critic."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["TokenMeans", "explained"]


class TokenMeans:
    """A value loss and its metrics, gathered over the micro-batches of an optimizer step and all processes."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._loss: Tensor | None = None
        self._tokens: Tensor | None = None
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: Tensor, metrics: Mapping[str, Any], mask: Tensor) -> None:
        """Take in a share of the step's loss, and means over the tokens of ``mask``."""
        tokens = mask.sum().float()
        self._loss = loss.detach().float() + (0.0 if self._loss is None else self._loss)
        self._tokens = tokens + (0.0 if self._tokens is None else self._tokens)
        for name, number in metrics.items():
            share = torch.as_tensor(number, device=mask.device).detach().float() * tokens
            self._sums[name] = share + self._sums.get(name, 0.0)

    def pop(self) -> dict[str, float]:
        """The step's numbers; every process must ask."""
        if self._loss is None or self._tokens is None:
            return {}
        own = torch.stack([self._loss, self._tokens, *self._sums.values()])
        loss, tokens, *sums = self._accelerator.reduce(own, reduction="sum").tolist()
        means = {name: total / max(tokens, 1.0) for name, total in zip(self._sums, sums, strict=True)}
        self._loss, self._tokens, self._sums = None, None, {}
        return {"value_loss": loss, **means}


def explained(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
    r"""How much of the returns the values foresaw.

    .. math::
        \text{explained\_variance} = 1 - \frac{\mathrm{Var}(R - V)}{\mathrm{Var}(R)}

    over the valid tokens: 1 is perfect, 0 no better than a constant, and it has no lower bound. It is left out where
    all returns are equal.

    Args:
        values: ``(B, T)`` when the rollouts were made, in units of reward.
        returns: ``(B, T)`` the targets.
        mask: ``(B, T)`` bool.
    """
    if not mask.any():
        return {}
    target, guess = returns[mask].float(), values[mask].float()
    numbers = {"values_mean": guess.mean().item(), "returns_mean": target.mean().item()}
    if target.amin() != target.amax():
        spread = target.var(correction=0)
        numbers["explained_variance"] = (1 - (target - guess).var(correction=0) / spread).item()
    return numbers
