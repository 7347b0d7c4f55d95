"""What our estimators have to say of a training step, kept until verl collects that step's metrics.

verl's estimators return tensors only. The hook `verl_metrics` in ``patches/`` adds what is kept here to
what verl's ``compute_data_metrics`` returns, later in the same step and process. Where the hook is not in force
nobody would collect them, and nothing is kept.

A step may have several batches. Counts add up; a diagnostic is the mean of theirs, or the extreme, as its entry in
:data:`~rl_estimators.diagnostics.DIAGNOSTICS` says.
"""

import statistics
from collections.abc import Callable, Mapping

from torch import Tensor

from rl_estimators import patching
from rl_estimators.diagnostics import DIAGNOSTICS, PREFIX

__all__ = ["add", "drain", "keep"]

_JOINS: Mapping[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "min": min,
    "max": max,
    "sum": sum,
}
_counts: dict[str, float] = {}
_numbers: dict[str, list[float]] = {}


def add(counts: Mapping[str, Tensor]) -> None:
    """Keep counts; those of one name add up."""
    if not _collected():
        return
    for name, number in counts.items():
        _counts[name] = _counts.get(name, 0.0) + float(number)


def keep(numbers: Mapping[str, float]) -> None:
    """Keep the diagnostics of one batch."""
    if not _collected():
        return
    for name, number in numbers.items():
        _numbers.setdefault(name, []).append(number)


def drain() -> dict[str, float]:
    """Hand out what was kept since the last call."""
    joined = {name: _JOINS[DIAGNOSTICS[name].joined](numbers) for name, numbers in _numbers.items()}
    metrics = {PREFIX + name: number for name, number in {**joined, **_counts}.items()}
    _clear()
    return metrics


def _collected() -> bool:
    """Whether the hook is in force; if not, what is left of a time when it was is forgotten."""
    in_force = patching.in_force("verl_metrics")
    if not in_force:
        _clear()
    return in_force


def _clear() -> None:
    _counts.clear()
    _numbers.clear()
