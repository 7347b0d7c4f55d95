"""A response as the estimators with a critic see it: rewards, values, and the value it ends in."""

from typing import NamedTuple

import torch
from torch import Tensor

from rl_estimators import masked
from rl_estimators.errors import InputError
from rl_estimators.scan import next_valid

__all__ = ["Steps", "read_last", "read_steps", "td_errors"]


class Steps(NamedTuple):
    """What is left of a batch once everything that must not count is cut off.

    Attributes:
        rewards: ``(B, T)``, 0 where ``mask`` is false.
        values: ``(B, T)`` the value before each step. In an excluded response they stay, where finite: as returns
            they teach the critic nothing.
        mask: ``(B, T)`` bool, true on steps that count; all false in an excluded response.
        last: ``(B,)`` :math:`V_{n+1}`, the value after the last step, or None where all are 0.
    """

    rewards: Tensor
    values: Tensor
    mask: Tensor
    last: Tensor | None


def read_steps(
    owner: str,
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    truncated: Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Steps:
    """Cut off what must not count; one step per valid token.

    Nothing is to be had after a finished response: its :math:`V_{n+1}` is 0. A truncated one would have gone on:
    its :math:`V_{n+1}` is its bootstrap value, which must then be finite as a reward must. A response whose rewards and
    values are so large that an advantage might be more than their dtype holds is excluded, too.

    Args:
        owner: Who asks, for messages.
        token_level_rewards: ``(B, T)``.
        values: ``(B, T)``.
        response_mask: ``(B, T)``, in any dtype.
        truncated: ``(B,)``, in any dtype; without it every response is finished.
        bootstrap_values: ``(B,)``.

    Raises:
        InputError: one of the last two without the other.
    """
    last = read_last(owner, truncated, bootstrap_values)
    valid = masked.as_mask(response_mask)
    old = masked.select(values, valid, token_level_rewards, *(() if last is None else (last,)))
    given = masked.select(token_level_rewards, valid, old)
    # no advantage is larger than this sum, in which each value stands twice, before a step and after one
    largest = masked.exact_sum(given.abs() + 2 * old.abs())
    largest = largest if last is None else largest + last.abs()
    rewards, mask, _ = masked.valid(token_level_rewards, response_mask, largest)
    return Steps(rewards, old.nan_to_num(0.0, 0.0, 0.0), mask, last)


def read_last(owner: str, truncated: Tensor | None, bootstrap_values: Tensor | None) -> Tensor | None:
    """``(B,)`` the value after each response's last step; None where all are 0.

    Raises:
        InputError: one of the two without the other.
    """
    for name, given, other, missing in (
        ("truncated", truncated, "bootstrap_values", bootstrap_values),
        ("bootstrap_values", bootstrap_values, "truncated", truncated),
    ):
        if given is not None and missing is None:
            raise InputError(f"{owner}: {name} is given without {other}; give both, or neither")
    if truncated is None or bootstrap_values is None:
        return None
    return torch.where(masked.as_mask(truncated), bootstrap_values, 0)


def td_errors(steps: Steps, gamma: float) -> Tensor:
    r"""What each step brought beyond its value: :math:`\delta_k = r_k + \gamma V_{k+1} - V_k`."""
    following = next_valid(steps.values, steps.mask, steps.last)
    return torch.where(steps.mask, steps.rewards + gamma * following - steps.values, 0)
