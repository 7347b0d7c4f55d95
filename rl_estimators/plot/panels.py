"""Which curves to draw: the concepts, or what ``--metric`` asks for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rl_estimators.errors import InputError
from rl_estimators.files.problems import Problems
from rl_estimators.hints import did_you_mean
from rl_estimators.plot.concepts import CONCEPTS, Concept, canonical
from rl_estimators.plot.runs import Run, Series

__all__ = ["Curve", "Panel", "choose", "names_of"]


@dataclass(frozen=True)
class Curve:
    """A run's series of one metric, under the name that the run has for it."""

    run: str
    metric: str
    series: Series


@dataclass(frozen=True)
class Panel:
    """The curves that belong together; a metric that is none of the concepts is one by itself."""

    concept: Concept
    curves: Sequence[Curve]


def choose(runs: Sequence[Run], patterns: Sequence[str], problems: Problems) -> list[Panel]:
    """A panel for each concept that a run has, or for whatever fits ``patterns``.

    These are names of concepts, or of metrics with ``*`` and ``?`` for parts of them. What has been left out is told.

    Raises:
        InputError: a pattern fits nothing, or there is nothing to draw.
    """
    concepts = list(dict.fromkeys(c for pattern in patterns for c in _fitting(pattern, runs))) or CONCEPTS
    panels = []
    for concept in concepts:
        curves = [*_curves(concept, runs)]
        if curves:
            panels.append(Panel(concept, curves))
        else:
            problems.tell(f"{concept.name}: no run has {' or '.join(concept.names)}; left out")
    if not any(run.metrics for run in runs):
        raise InputError(
            "nothing to draw: nothing has been logged yet; TRL logs every `logging_steps`, 10 unless it is set"
        )
    if not panels:
        raise InputError(f"nothing to draw: no run has any of {', '.join(c.name for c in concepts)}; {_LIST}")
    return panels


_LIST = "--list prints what the runs have"


def names_of(runs: Sequence[Run]) -> list[str]:
    """The names of all metrics, in alphabetical order."""
    return sorted({name for run in runs for name in run.metrics})


def _fitting(pattern: str, runs: Sequence[Run]) -> Iterator[Concept]:
    """The concepts and metrics that a pattern asks for."""
    known = {concept.name: concept for concept in CONCEPTS}
    if pattern in known:
        yield known[pattern]
        return
    names = names_of(runs)
    found = [name for name in names if fnmatchcase(name, canonical(pattern))]
    if not found:
        hint = did_you_mean(canonical(pattern), [*known, *names])
        raise InputError(f"no run has a metric {pattern!r}.{hint} {_LIST}")
    for name in found:
        yield Concept(name, name, (name,), ())


def _curves(concept: Concept, runs: Sequence[Run]) -> Iterator[Curve]:
    for run in runs:
        name = next((name for name in concept.names if name in run.metrics), None)
        if name is not None:
            yield Curve(run.name, name, run.metrics[name])
