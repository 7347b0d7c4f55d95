"""One comparison as the page needs it: the numbers that are also printed, and each response's advantages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rl_estimators.carry import carry_rewards
from rl_estimators.compare.model import Comparison
from rl_estimators.compare.packed import Packed
from rl_estimators.compare.summary import Summary, summarise
from rl_estimators.errors import InputError
from rl_estimators.masked import as_mask, scored

__all__ = ["Array", "Digest", "digest"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Digest:
    """A comparison of ``B`` responses in ``T`` positions.

    Attributes:
        comparison: What was digested.
        summary: Its numbers, as the command prints them.
        mask: ``(B, T)``, true on the tokens the policy wrote.
        counts: ``(B,)``, false on responses that no estimator can use: a reward that is not finite, or no tokens.
    """

    comparison: Comparison
    summary: Summary
    mask: Array
    counts: Array

    @property
    def names(self) -> list[str]:
        """The estimators, in the user's order."""
        return list(self.comparison.advantages)

    def advantages(self, name: str, i: int) -> Array:
        """``(T,)`` one estimator's advantages of response ``i``, 0 on masked positions."""
        found = self.comparison.advantages
        row = found.row(name, i) if isinstance(found, Packed) else found[name][i]
        return np.where(self.mask[i], row.float().numpy(), np.float32(0))


def digest(comparison: Comparison) -> Digest:
    """Read a comparison once.

    Raises:
        InputError: its parts do not fit each other.
    """
    inputs = comparison.rollouts.inputs
    mask = as_mask(inputs["response_mask"])
    _check(comparison, mask)
    _, _, counts = scored(carry_rewards(inputs["token_level_rewards"], mask), mask, inputs["index"])
    return Digest(
        comparison=comparison,
        summary=summarise(comparison, contested=0),
        mask=mask.numpy(),
        counts=counts.numpy(),
    )


def _check(comparison: Comparison, mask: Tensor) -> None:
    rollouts = comparison.rollouts
    size, width = mask.shape
    for label, texts in (("prompts", rollouts.prompts), ("pieces", rollouts.pieces)):
        if len(texts) != size:
            raise InputError(
                f"{rollouts.source}: {len(texts)} {label} for {size} responses; give one for each"
            )
    longest = max(map(len, rollouts.pieces), default=0)
    if longest > width:
        raise InputError(
            f"{rollouts.source}: a response has {longest} pieces and response_mask has {width} positions; give at "
            "most one piece for each position"
        )
    for name, advantages in comparison.advantages.items():
        if advantages.shape != mask.shape:
            raise InputError(
                f"{rollouts.source}: the advantages of {name} have shape {tuple(advantages.shape)}, expected "
                f"{tuple(mask.shape)} as response_mask"
            )
