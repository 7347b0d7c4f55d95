"""The picture: a panel for each concept, a line for each run, one legend."""

from collections.abc import Sequence
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_estimators.errors import InputError
from rl_estimators.plot.panels import Curve, Panel
from rl_estimators.plot.smoothing import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MOST_RUNS", "draw", "refuse_too_much"]

# Okabe and Ito's colours, told apart with any colour vision, without black and the yellow that fades on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", "--", ":", "-.")  # a second look for a colour's second run
MOST_RUNS = len(_COLOURS) * len(_DASHES)
_MOST_PANELS = 60
_COLUMNS, _WIDTH, _HEIGHT, _LINE = 3, 4.2, 2.7, 0.2  # inches a panel, and a line of the legend
_LONGEST_TITLE, _LONGEST_RUN = 46, 34  # letters in a panel's width
_FEW = 40  # points, which are shown as such
_FAINT = 0.25


def refuse_too_much(panels: Sequence[Panel], runs: Sequence[str]) -> None:
    """Refuse what nobody could read.

    Raises:
        InputError: more panels or runs than a picture can hold.
    """
    if len(runs) > MOST_RUNS:
        raise InputError(
            f"{len(runs)} runs are more than the {MOST_RUNS} that a picture can tell apart; name fewer"
        )
    if len(panels) > _MOST_PANELS:
        raise InputError(
            f"{len(panels)} metrics are more than the {_MOST_PANELS} that a picture can hold; ask for fewer by --metric"
        )


def draw(panels: Sequence[Panel], runs: Sequence[str], weight: float) -> bytes:
    """Draw ``panels`` as a PNG file.

    Args:
        panels: What to draw.
        runs: The names of all runs, which are in every panel of the same colour.
        weight: Of the moving average, see :func:`~rl_estimators.plot.smoothing.smooth`; the values themselves are
            drawn faintly then. 0 for none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    abreast = max(1, columns * _LONGEST_RUN // max(map(len, runs)))  # runs in a line of the legend
    height = _HEIGHT * rows + _LINE * (1 + ceil(len(runs) / abreast))
    figure = Figure(figsize=(_WIDTH * columns, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend is configured
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    looks = {
        run: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS)]}
        for i, run in enumerate(runs)
    }
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, panel, looks, weight)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _legend(figure, looks, abreast)
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _panel(axes: "Axes", panel: Panel, looks: dict[str, dict[str, Any]], weight: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in panel.curves:
        if weight:
            _line(axes, curve, curve.series.drawn, alpha=_FAINT, linewidth=1.0, **looks[curve.run])
        _line(axes, curve, smooth(curve.series.drawn, weight), linewidth=1.6, **looks[curve.run])
    _title(axes, panel.concept.title + _cut_off(axes, panel))
    axes.tick_params(labelsize=8, labelbottom=True)
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: "Axes", curve: Curve, values: "np.ndarray[Any, Any]", **look: Any) -> None:
    """A line with gaps where the values are NaN; a point between two gaps is a dot, or nobody would see it."""
    known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
    lonely = known[1:-1] & ~known[:-2] & ~known[2:]
    dots = known[1:-1] if known.sum() <= _FEW else lonely
    axes.plot(
        curve.series.steps, values, marker="o", markersize=3, markevery=np.flatnonzero(dots).tolist(), **look
    )


def _cut_off(axes: "Axes", panel: Panel) -> str:
    """Keep a few low values from flattening the rest, and say so."""
    floor = panel.concept.floor
    if floor is None:
        return ""
    axes.axhline(0, color="0.5", linewidth=0.8)
    values = np.concatenate([curve.series.known.values for curve in panel.curves])
    if not np.any(values < floor) or not np.any(values > floor):
        return ""
    axes.set_ylim(bottom=floor)
    return f" (cut off below {floor:g})"


def _title(axes: "Axes", text: str) -> None:
    """A title on the left that stays in its panel: of a long name the end, which says most."""
    short = text if len(text) <= _LONGEST_TITLE else "\N{HORIZONTAL ELLIPSIS}" + text[1 - _LONGEST_TITLE :]
    axes.set_title(short, fontsize=10, loc="left", parse_math=False)


def _legend(figure: Any, looks: dict[str, dict[str, Any]], abreast: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=2, **look) for look in looks.values()]
    legend = figure.legend(
        handles, [*looks], loc="outside upper left", ncols=abreast, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run may be called $x$
