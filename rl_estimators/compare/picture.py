"""A comparison as one picture: the responses, the agreement, and the prompts that carry the signal."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_estimators.compare.overall import Overall, add_up
from rl_estimators.compare.summary import Summary
from rl_estimators.files.plain import clip, escaped

__all__ = ["draw"]

Array = NDArray[np.float64]
_LOW, _MIDDLE, _HIGH = "#d55e00", "#b9b4ac", "#0072b2"  # told apart by everybody
_INK, _FAINT = "#222222", "#e4e4e4"
_MOST_DOTS = 1500  # in a row: more are a blot
_MOST_PROMPTS = 80  # columns: more are thinner than a line
_NAME = 34


def draw(summaries: Sequence[Summary], title: str) -> bytes:
    """The picture as PNG.

    Args:
        summaries: At least one.
        title: What was read.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    overall = add_up(summaries, shown=0)
    names = [*overall.rows]
    height = 2.6 + 0.9 * max(len(names), 3)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(3, 2, width_ratios=[1.45, 1], height_ratios=[6, 4.4, 1.3])
        _responses(figure, figure.add_subplot(grid[0, 0]), summaries, overall)
        _agreement(figure, figure.add_subplot(grid[0, 1]), names, overall)
        _signal(figure, figure.add_subplot(grid[1, :]), figure.add_subplot(grid[2, :]), summaries, names)
        figure.suptitle(_label(f"{clip(title, 90)}: {_size(summaries)}"), fontsize=13, x=0.01, ha="left")
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


_STYLE: Any = {
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def _size(summaries: Sequence[Summary]) -> str:
    responses = sum(len(summary.scores) for summary in summaries)
    prompts = sum(len(summary.prompts) for summary in summaries)
    batches = f", {len(summaries):,} batches" if len(summaries) > 1 else ""
    return f"{responses:,} responses to {prompts:,} prompts{batches}"


def _label(text: str) -> str:
    """What matplotlib's font has signs for."""
    return escaped(text).encode("ascii", "backslashreplace").decode()


def _numbered(names: list[str]) -> list[str]:
    return [f"{_label(clip(name, _NAME))}  {at + 1}" for at, name in enumerate(names)]


def _responses(figure: Any, axes: Any, summaries: Sequence[Summary], overall: Overall) -> None:
    """A row for each estimator, a dot for each response, coloured by its reward."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("reward", [_LOW, _MIDDLE, _HIGH])
    scores = np.concatenate([summary.scores for summary in summaries])
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    generator = np.random.default_rng(0)
    dots = None
    for at, (name, row) in enumerate(overall.rows.items()):
        numbers, own = _column(summaries, name)
        kept = np.flatnonzero(np.isfinite(own))
        if len(kept) > _MOST_DOTS:
            kept = generator.choice(kept, _MOST_DOTS, replace=False)
        scatter = generator.uniform(-0.33, 0.33, len(kept))
        dots = axes.scatter(
            numbers[kept], at + scatter, c=own[kept], cmap=colours, vmin=low, vmax=max(high, low + 1e-9), s=11,
            alpha=0.65, linewidths=0, rasterized=True,
        )  # fmt: skip
        axes.text(1.08, at, f"{100 * row.zero_responses:.0f}%", va="center", ha="left")
    axes.axvline(0, color=_INK, linewidth=0.8, zorder=0)
    for edge in range(1, len(overall.rows)):
        axes.axhline(edge - 0.5, color=_FAINT, linewidth=0.8, zorder=0)
    axes.text(1.08, -0.62, "at 0", va="bottom", ha="left")
    axes.set_xlim(-1.06, 1.06)
    axes.set_ylim(len(overall.rows) - 0.5, -0.5)
    axes.set_yticks(range(len(overall.rows)), _numbered([*overall.rows]))
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlabel("advantage of a response, in units of the estimator's largest (in its batch)")
    part = f" ({_MOST_DOTS:,} responses, drawn at random)" if len(finite) > _MOST_DOTS else ""
    axes.set_title(f"Who is praised and who is blamed{part}")
    if dots is not None:
        bar = figure.colorbar(dots, ax=axes, location="right", shrink=0.55, pad=0.09, aspect=14)
        bar.set_label("reward")
        bar.solids.set_alpha(1)
        bar.outline.set_visible(False)


def _column(summaries: Sequence[Summary], name: str) -> tuple[Array, Array]:
    """Advantages of all responses, each batch's in units of its largest, and their scores."""
    numbers, scores = [np.zeros(0)], [np.zeros(0)]
    for summary in summaries:
        if name in summary.columns:
            column = summary.columns[name]
            numbers.append(column / (np.abs(column).max(initial=0) or 1))
            scores.append(summary.scores)
    return np.concatenate(numbers), np.concatenate(scores)


def _agreement(figure: Any, axes: Any, names: list[str], overall: Overall) -> None:
    """Rank agreement, as colour and as number."""
    table = overall.ranks
    image = axes.imshow(np.ma.masked_invalid(table), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    axes.set_facecolor(_FAINT)
    for i, j in np.ndindex(table.shape):
        number = table[i, j]
        told = "-" if np.isnan(number) else f"{number:.2f}"
        dark = not np.isnan(number) and abs(number) > 0.65
        axes.text(j, i, told, ha="center", va="center", fontsize=8.5, color="white" if dark else _INK)
    numbers = [str(at + 1) for at in range(len(names))]
    axes.set_yticks(range(len(names)), numbers)
    axes.set_xticks(range(len(names)), numbers)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Do they rank responses alike? (Spearman)")
    bar = figure.colorbar(image, ax=axes, shrink=0.55, aspect=14, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["reversed", "unrelated", "same"])
    bar.outline.set_visible(False)


def _signal(figure: Any, axes: Any, below: Any, summaries: Sequence[Summary], names: list[str]) -> None:
    """Prompts from the lowest to the highest mean reward; how much of each estimator's update comes from each."""
    means, shares, per = _prompts(summaries, names)
    relative = shares * shares.shape[1]
    nonzero = relative[relative > 0]
    top = float(np.percentile(nonzero, 98)) if nonzero.size else 1.0
    colours = _sequential()
    image = axes.imshow(
        np.ma.masked_where(relative == 0, relative), cmap=colours, vmin=0, vmax=top, aspect="auto", interpolation="none"
    )  # fmt: skip
    axes.set_facecolor(_FAINT)
    axes.set_yticks(range(len(names)), _numbered(names))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    each = "a column a prompt" if per == 1 else f"a column about {per:.0f} prompts"
    axes.set_title(f"Which prompts carry the signal ({each}; grey: none)")
    bar = figure.colorbar(image, ax=[axes, below], shrink=0.7, aspect=20, pad=0.01)
    bar.set_label("times an even share")
    bar.outline.set_visible(False)
    floor = min(0.0, float(means.min(initial=0)))
    below.bar(np.arange(len(means)), means - floor, width=1.0, color=_HIGH, alpha=0.5, bottom=floor)
    _alike(axes, below, summaries, len(means))
    below.set_xlim(-0.5, len(means) - 0.5)
    below.set_xticks([])
    below.set_ylabel("mean\nreward", rotation=0, ha="right", va="center")
    below.set_xlabel("prompts, from the lowest mean reward to the highest")


def _alike(axes: Any, below: Any, summaries: Sequence[Summary], columns: int) -> None:
    """Where the prompts begin and end whose responses all have the lowest, or the highest, reward."""
    kinds = [prompt.kind for summary in summaries for prompt in summary.prompts if np.isfinite(prompt.mean)]
    for kind, at_end in (("wrong", False), ("right", True)):
        count = kinds.count(kind)
        reach = columns * count / max(len(kinds), 1)
        if reach < 0.05 * columns:
            continue
        edge = columns - 0.5 - reach if at_end else reach - 0.5
        for place in (axes, below):
            place.axvline(edge, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        middle = edge + reach / 2 * (1 if at_end else -1)
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
        below.text(
            middle, 0.5, f"{count:,} all {kind}", transform=below.get_xaxis_transform(), ha="center", va="center", bbox=ground
        )  # fmt: skip


def _prompts(summaries: Sequence[Summary], names: list[str]) -> tuple[Array, Array, float]:
    """Mean reward ``(N,)`` and shares ``(K, N)`` of at most 80 columns, and how many prompts a column holds."""
    means = np.array([prompt.mean for summary in summaries for prompt in summary.prompts])
    blank = [np.zeros(len(summary.prompts)) for summary in summaries]
    shares = np.array(
        [
            np.concatenate(
                [summary.shares.get(name, none) for summary, none in zip(summaries, blank, strict=True)]
            )
            / sum(name in summary.shares for summary in summaries)
            for name in names
        ]
    )
    order = np.argsort(means, kind="stable")
    order = order[np.isfinite(means[order])] if np.isfinite(means).any() else order
    columns = min(len(order), _MOST_PROMPTS)
    bins = np.array_split(order, columns) if columns else []
    table = np.array([shares[:, own].sum(-1) for own in bins]).T.reshape(len(names), columns)
    height = np.array([means[own].mean() for own in bins])
    return np.nan_to_num(height), table, len(order) / max(columns, 1)


def _sequential() -> Any:
    """Light to dark; the lightest is not the grey of nothing."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.12, 1, 256)))
