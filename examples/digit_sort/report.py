"""What came out: the numbers of each step as a table and as a picture, and the verdict on them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REWARD = "critic/score/mean"
COLUMNS = {  # heading: verl's name for it, format
    "step": ("step", "4d"),
    "reward": (REWARD, "8.3f"),
    "KL": ("actor/reward_kl_penalty", "8.4f"),
    "entropy": ("actor/entropy", "8.3f"),
    "grad norm": ("actor/grad_norm", "10.3f"),
    "length": ("response_length/mean", "7.2f"),
    "seconds": ("timing_s/step", "8.1f"),
}
WINDOW = 5
LEAST_GAIN = 0.10
LEAST_FINAL = 0.70


def read_metrics(text: str) -> list[dict[str, Any]]:
    """Parse what verl's file logger wrote, one dict per finished training step.

    Each line holds ``{"step": ..., "data": {...}}``; the last one may be half written still. Lines without
    a reward, as validation writes them, are left out.
    """
    rows = []
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            entry = json.loads(line)
            if entry["data"].get(REWARD) is not None:
                rows.append({"step": entry["step"], **entry["data"]})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay the steps out in columns; "-" stands where verl reported nothing."""
    widths = {heading: int(form.split(".")[0].rstrip("d")) for heading, (_, form) in COLUMNS.items()}
    lines = [" ".join(f"{heading:>{width}}" for heading, width in widths.items())]
    for row in rows:
        cells = []
        for heading, (name, form) in COLUMNS.items():
            value = row.get(name)
            cells.append(f"{'-':>{widths[heading]}}" if value is None else f"{value:{form}}")
        lines.append(" ".join(cells))
    return "\n".join(lines)


def first_and_last(rows: Sequence[dict[str, Any]]) -> tuple[float, float, int]:
    """Return the mean reward of the first and of the last steps, and how many steps each mean is over."""
    count = max(1, min(WINDOW, len(rows) // 2))
    rewards = [row[REWARD] for row in rows]
    return sum(rewards[:count]) / count, sum(rewards[-count:]) / count, count


def verdict(rows: Sequence[dict[str, Any]]) -> tuple[bool, str]:
    """Tell whether the reward clearly rose, and say so in a sentence."""
    first, last, count = first_and_last(rows)
    many = "step" if count == 1 else f"{count} steps"
    numbers = (
        f"mean reward {first:.3f} in the first {many}, {last:.3f} in the last {many} "
        f"(wanted: a gain of {LEAST_GAIN:.2f} or more, to above {LEAST_FINAL:.2f})"
    )
    if last - first >= LEAST_GAIN and last > LEAST_FINAL:
        return True, f"The reward rose: {numbers}."
    return False, f"The reward did NOT clearly rise: {numbers}."


def plot(runs: Mapping[str, Sequence[dict[str, Any]]], estimator: str, path: Path) -> None:
    """Draw the mean reward of each step and its moving average into a PNG file, for each framework."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (framework, rows), colour in zip(runs.items(), ("tab:blue", "tab:orange"), strict=False):
        steps = [row["step"] for row in rows]
        rewards = [row[REWARD] for row in rows]
        parts = (rewards[max(0, i - WINDOW + 1) : i + 1] for i in range(len(rows)))
        smooth = [sum(part) / len(part) for part in parts]
        axes.plot(
            steps, rewards, "o", color=colour, markersize=5, label=f"{framework}: mean of the step's answers"
        )
        axes.plot(
            steps, smooth, color=colour, alpha=0.4, linewidth=2, label=f"{framework}: mean of {WINDOW} steps"
        )
    axes.set_ylim(0, 1)
    axes.set_xlabel("training step", fontsize=12)
    axes.set_ylabel("mean reward", fontsize=12)
    axes.set_title(f"Sorting 4 digits with {' and '.join(runs)}, estimator {estimator}", fontsize=13)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path)
