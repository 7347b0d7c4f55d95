"""The curves as text: a short table for the terminal, and every number as CSV."""

import csv
from collections.abc import Sequence
from io import StringIO

import numpy as np

from rl_estimators.plot.panels import Curve, Panel

__all__ = ["as_csv", "summary"]

_HEADINGS = ("curve", "run", "steps", "gaps", "first", "last", "best", "at step")


def summary(panels: Sequence[Panel], runs: Sequence[str]) -> str:
    """First, last and best number of each curve, at how many steps there is one, and at how many it is a gap.

    Best is the largest where more is better, and "-" where neither end is good in itself. A run without the curve
    has a line of "-".
    """
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for panel in panels:
        curves = {curve.run: curve for curve in panel.curves}
        rows += [_row(panel, run, curves.get(run)) for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        words = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        numbers = [word.rjust(width) for word, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(words + numbers))
    return "\n".join(lines)


def _row(panel: Panel, run: str, curve: Curve | None) -> tuple[str, ...]:
    head: tuple[str, ...] = (panel.concept.name, run)
    if curve is None:
        return (*head, "-", "-", "-", "-", "-", "-")
    series = curve.series.known
    head = (*head, str(len(series.steps)), str(curve.series.gaps.sum()))
    if not len(series.steps):
        return (*head, "-", "-", "-", "-")
    row = (*head, _short(series.values[0]), _short(series.values[-1]))
    if panel.concept.best is None:
        return (*row, "-", "-")
    best = int(np.argmax(series.values))
    return (*row, _short(series.values[best]), str(series.steps[best]))


def _short(number: float) -> str:
    return f"{number:.4g}"


def as_csv(panels: Sequence[Panel]) -> bytes:
    """Every number of the curves, a line each: concept, run, metric, step, value.

    A value is written in full: reading it gives the same fp64. NaN and infinity are ``nan``, ``inf`` and ``-inf``.
    """
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("concept", "run", "metric", "step", "value"))
    for panel in panels:
        for curve in panel.curves:
            points = zip(curve.series.steps.tolist(), curve.series.values.tolist(), strict=True)
            writer.writerows((panel.concept.name, curve.run, curve.metric, *point) for point in points)
    return text.getvalue().encode()
