"""What came out of the runs on a GPU: one JSON file and one picture of all of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from digit_sort import report
from digit_sort.parts import PARTS

__all__ = ["judge", "merged", "plot", "read", "summary", "write"]

COLOURS = {"gae": "tab:blue", "grpo": "tab:orange", "reinforce_pp": "tab:green", "remax": "tab:red"}
GIB = 2**30


def read(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runs in the file, or none unless they were made on the same machine with the same settings.

    Args:
        path: what `write` wrote; there need not be such a file.
        like: "machine" and "settings", as they are now.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    same = all(found.get(key) == like[key] for key in ("machine", "settings"))
    return dict(found["runs"]) if same else {}


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Return several files as one; the last wins where two have the same run.

    Raises:
        ValueError: they are not of one machine with the same settings, or there are none.
    """
    files = [json.loads(path.read_text()) for path in paths]
    if not files:
        raise ValueError("there is no file to read")
    for path, one in zip(paths, files, strict=True):
        for key in ("machine", "settings"):
            if one[key] != files[0][key]:
                raise ValueError(f"{path} has {key} {one[key]}, and {paths[0]} has {files[0][key]}")
    runs = {name: run for one in files for name, run in one["runs"].items()}
    return {**files[0], "runs": runs}


def write(results: Mapping[str, Any], path: Path) -> None:
    """Write the JSON file, whole or not at all."""
    half = path.with_suffix(".part")
    half.write_text(json.dumps(results, indent=1) + "\n")
    half.replace(path)


def summary(runs: Mapping[str, Any]) -> str:
    """Lay out a line a run: the reward, seconds of a step and of its parts, the most memory."""
    heads = ["run", "first", "last", "s/step", *PARTS, "GPU GiB", "host GiB"]
    lines = [heads]
    for name, run in runs.items():
        first, last, _ = report.first_and_last(_rows(run))
        seconds = [f"{run['parts'][part]:.3f}" for part in PARTS]
        memory = [f"{run[key] / GIB:.1f}" for key in ("device_bytes", "host_bytes")]
        lines.append(
            [name, f"{first:.3f}", f"{last:.3f}", f"{sum(run['parts'].values()):.2f}", *seconds, *memory]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw the rewards, a panel a framework, and below them the parts of a step, a bar a run, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(11, 5.5 + 0.3 * len(runs)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(
        [["verl", "trl"], ["parts", "parts"]], height_ratios=[4, 1 + 0.3 * len(runs)]
    )
    for framework, title in (("verl", "verl"), ("trl", "TRL")):
        _curves(axes[framework], {name: run for name, run in runs.items() if name.startswith(framework)})
        axes[framework].set_title(f"{title}: mean reward of a step's answers")
    _bars(axes["parts"], runs)
    machine, settings = results["machine"], results["settings"]
    where = machine["processor"] if settings["device"] == "cpu" else machine["gpu"]
    figure.suptitle(f"Sorting 4 digits, {settings['parameters'] / 1e6:.2f} M parameters, on {where}")
    figure.savefig(path)


def _curves(axes: Any, runs: Mapping[str, Any]) -> None:
    for name, run in runs.items():
        estimator = name.partition(":")[2]
        rewards = run["rewards"]
        window = report.WINDOW
        parts = (rewards[max(0, i - window + 1) : i + 1] for i in range(len(rewards)))
        steps, colour = range(1, len(rewards) + 1), COLOURS.get(estimator)
        axes.plot(steps, rewards, ".", color=colour, alpha=0.4)
        axes.plot(steps, [sum(part) / len(part) for part in parts], color=colour, label=estimator)
    axes.set_ylim(0, 1)
    axes.set_xlabel("training step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if runs:
        axes.legend(loc="lower right", title=f"line: mean of {report.WINDOW} steps")


def _bars(axes: Any, runs: Mapping[str, Any]) -> None:
    names = list(runs)
    left = [0.0] * len(names)
    for number, part in enumerate(PARTS):
        seconds = [runs[name]["parts"][part] for name in names]
        axes.barh(names, seconds, left=left, label=part, color=f"C{number}")
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for place, name in enumerate(names):
        gpu, host = (runs[name][key] / GIB for key in ("device_bytes", "host_bytes"))
        text = f"  host {host:.1f} GiB" + (f", GPU {gpu:.1f} GiB" if gpu else "")
        axes.text(left[place], place, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(left, default=1.0) or 1.0)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a step, and the most memory")
    axes.legend(ncols=len(PARTS), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25))


def _rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"step": step, report.REWARD: reward} for step, reward in enumerate(run["rewards"], start=1)]


def judge(run: Mapping[str, Any]) -> tuple[bool, str]:
    """Tell whether the run's reward clearly rose, and say so in a sentence."""
    return report.verdict(_rows(run))
