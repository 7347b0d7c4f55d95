"""Estimators, run on one batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rl_estimators.calls import estimate
from rl_estimators.compare.choices import Choice
from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.compare.packed import Packed
from rl_estimators.errors import EstimatorError, InputError
from rl_estimators.fields import FIELDS
from rl_estimators.masked import as_mask
from rl_estimators.metrics import collect_metrics
from rl_estimators.registry import ADV_ESTIMATORS, Spec

__all__ = ["LOGGED", "compare"]

LOGGED = "logged"  # the name of what the run itself has logged


def compare(rollouts: Rollouts, choices: Sequence[Choice]) -> Comparison:
    """Run each estimator on the same rollouts.

    Rewards at masked positions are carried to the last valid token before them, as the adapters of verl and TRL do.

    Raises:
        InputError: an estimator that runs without the options it was given does not run with them.
    """
    advantages = Packed(rollouts.inputs["response_mask"])
    not_run: dict[str, str] = {}
    excluded: dict[str, int] = {}
    for choice in choices:
        try:
            spec = ADV_ESTIMATORS.spec(choice.name)
            lacking = [name for name in spec.required if name not in rollouts.inputs]
            if lacking:
                meanings = "; ".join(f"{name}, {FIELDS[name].meaning}" for name in lacking)
                not_run[choice.label] = f"the rollouts lack {meanings}"
                continue
            found, excluded[choice.label] = _run(choice, spec, rollouts)
            advantages.keep(choice.label, found)
        except EstimatorError as error:
            if choice.options and _runs_without_options(choice, rollouts):
                raise InputError(f"--estimators {choice.label}: {error}") from error
            not_run[choice.label] = str(error)
    notes = [*rollouts.notes, *_not_finite(advantages, rollouts.inputs["response_mask"])]
    if rollouts.logged is not None:
        found, excluded[LOGGED] = _logged(rollouts.logged, rollouts.inputs["response_mask"])
        advantages.keep(LOGGED, found)
    return Comparison(replace(rollouts, notes=notes), advantages, not_run, excluded)


def _run(choice: Choice, spec: Spec, rollouts: Rollouts) -> tuple[Tensor, int]:
    """Its advantages, and how many responses it left out.

    Raises:
        EstimatorError: it cannot run; whatever somebody else's function raises is made one.
    """
    given: dict[str, Any] = {"masked_rewards": "carry", **rollouts.inputs, **choice.options}
    try:
        with collect_metrics() as metrics:
            found = estimate(choice.name, **given).advantages
    except EstimatorError:
        raise
    except Exception as error:
        raise EstimatorError(
            f"{choice.name}, {spec.function.__module__}, failed: {type(error).__name__}: {error}"
        ) from error
    return found, int(metrics.get("excluded_responses", 0))


def _runs_without_options(choice: Choice, rollouts: Rollouts) -> bool:
    try:
        _run(Choice(choice.name, choice.name, {}), ADV_ESTIMATORS.spec(choice.name), rollouts)
    except EstimatorError:
        return False
    return True


def _not_finite(advantages: Mapping[str, Tensor], mask: Tensor) -> Iterator[str]:
    """Somebody else's estimator may let a NaN through; shown as 0 it would look harmless."""
    for label, numbers in advantages.items():
        odd = int((as_mask(mask) & ~torch.isfinite(numbers)).any(-1).sum())
        if odd:
            yield (
                f"{label} gives {odd:,} of {len(mask):,} responses an advantage that is NaN or infinite, with which training "
                "would break; it counts as 0 here"
            )


def _logged(numbers: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    finite = torch.isfinite(numbers)
    rows = torch.where(finite, numbers, 0)[:, None]
    return torch.where(as_mask(mask), rows, 0), int((~finite).sum())
