"""A run: one series of numbers over the steps for each metric."""

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rl_estimators.files.plain import escaped
from rl_estimators.files.problems import Problems
from rl_estimators.plot.concepts import canonical

__all__ = ["Points", "Run", "Series", "as_step"]

_LARGEST_STEP = 2**53  # beyond it a picture's axis, in fp64, no longer tells steps apart
_LARGEST_VALUE = 1e100  # matplotlib fails where an axis' range overflows


@dataclass(frozen=True)
class Series:
    """A metric over the steps: ``steps`` ascend, none twice; ``values`` are as they were logged."""

    steps: "np.ndarray[Any, Any]"
    values: "np.ndarray[Any, Any]"

    @property
    def gaps(self) -> "np.ndarray[Any, Any]":
        """Where there is nothing to draw: the value is not finite, or beyond 1e100, where a picture's axis ends."""
        drawable: np.ndarray[Any, Any] = np.abs(self.values) <= _LARGEST_VALUE
        return ~drawable

    @property
    def known(self) -> "Series":
        """Without the gaps."""
        return Series(self.steps[~self.gaps], self.values[~self.gaps])

    @property
    def drawn(self) -> "np.ndarray[Any, Any]":
        """The values with NaN in the gaps."""
        return np.where(self.gaps, np.nan, self.values)


@dataclass(frozen=True)
class Run:
    """What one run logged: its name, and its metrics by name."""

    name: str
    metrics: Mapping[str, Series]


@dataclass
class Points:
    """Gathers numbers in the order in which they were logged."""

    _steps: "dict[str, array[int]]" = field(default_factory=dict)
    _values: "dict[str, array[float]]" = field(default_factory=dict)

    def add(self, step: int, name: str, value: Any) -> None:
        """Take a number in, None as NaN; whatever else a framework logs, a text say, is no point of a curve."""
        if isinstance(value, bool) or not (value is None or isinstance(value, (int, float))):
            return
        name = escaped(canonical(name))
        if name not in self._steps:
            self._steps[name], self._values[name] = array("q"), array("d")
        self._steps[name].append(step)
        self._values[name].append(_number(value))

    @property
    def last_step(self) -> int:
        """The largest step so far; -1 without any."""
        return max((max(steps) for steps in self._steps.values()), default=-1)

    def run(self, name: str, problems: Problems) -> Run:
        """The run ``name``: of a step that was logged twice the later number counts, and ``problems`` is told."""
        twice: set[int] = set()
        metrics = {}
        for metric, steps in self._steps.items():
            series, repeated = _later_wins(np.array(steps), np.array(self._values[metric]))
            metrics[metric] = series
            twice.update(repeated.tolist())
        if twice:
            problems.tell(
                f"{escaped(name)}: other numbers were logged again for {len(twice)} of the steps from "
                f"{min(twice)} to {max(twice)}, after a resume say: the later ones count"
            )
        return Run(name, metrics)


def as_step(value: Any) -> int | None:
    """A step's number, or None for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST_STEP:
        return None
    return value


def _number(value: float | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any length
        return math.inf if value > 0 else -math.inf


def _later_wins(
    steps: "np.ndarray[Any, Any]", values: "np.ndarray[Any, Any]"
) -> "tuple[Series, np.ndarray[Any, Any]]":
    """Sort by step and keep the last number of each; also the steps whose numbers were not all the same."""
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    again = steps[1:] == steps[:-1]
    same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    last = np.append(~again, True)
    return Series(steps[last], values[last]), steps[1:][again & ~same]
