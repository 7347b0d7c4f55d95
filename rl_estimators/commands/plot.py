"""``rl-estimators plot``: curves of training runs from verl's and TRL's own logs, as a picture and a table."""

import argparse
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rl_estimators.errors import InputError
from rl_estimators.fields import check_range
from rl_estimators.files.outputs import check_png, write
from rl_estimators.files.problems import Problems
from rl_estimators.plot import table
from rl_estimators.plot.concepts import CONCEPTS
from rl_estimators.plot.draw import draw, refuse_too_much
from rl_estimators.plot.find import is_log, load
from rl_estimators.plot.panels import choose, names_of
from rl_estimators.plot.problems import IN_LOGS

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to read, what to draw, where to."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a log, or a folder, which is searched with all below it: verl's file logger, event files of TensorBoard, "
        "TRL's trainer_state.json",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("curves.png"), help="the PNG file (curves.png)"
    )
    parser.add_argument(
        "-m",
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="draw this instead: a name in the log, with * and ? for parts of it, or one of "
        f"{', '.join(concept.name for concept in CONCEPTS)}; may be given again",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="W",
        help="moving average in which a value weighs W (0 to 0.999) times as much as the next; the values stay visible",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument(
        "--list", action="store_true", help="print the names of all metrics, and draw nothing"
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse a log in which something cannot be read"
    )


def run(options: argparse.Namespace) -> int:
    """Draw the runs and print a line for each curve.

    Raises:
        InputError: there is no log, nothing to draw, no place to write to, or matplotlib is not installed.
    """
    check_range("plot", high=0.999, **{"--smooth": options.smooth})
    _check_writable(options)
    problems = Problems(options.strict, IN_LOGS)
    runs = load(options.runs, problems)
    if options.list:
        print(*names_of(runs), sep="\n")
    else:
        panels = choose(runs, options.metric, problems)
        names = [run.name for run in runs]
        refuse_too_much(panels, names)
        made = {options.output: draw(panels, names, options.smooth)}
        if options.csv is not None:
            made[options.csv] = table.as_csv(panels)
        _write(made)
        print(table.summary(panels, names))
    for note in problems.lines():
        print(note, file=sys.stderr)
    if not options.list:
        print(f"written: {', '.join(str(path) for path in (options.output, options.csv) if path)}")
    return 0


def _check_writable(options: argparse.Namespace) -> None:
    """Refuse before hours of logs are read."""
    if options.list:
        return
    if find_spec("matplotlib") is None:
        raise InputError("pictures need matplotlib, which is not installed: pip install 'rl-estimators[see]'")
    check_png("--output", options.output)
    for path in (options.output, options.csv):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        if path is not None and path.is_file() and os.access(path, os.R_OK) and is_log(path):
            raise InputError(f"{path}: it is the log of a run, and would be lost; write somewhere else")


def _write(made: Mapping[Path, bytes]) -> None:
    """All is made before the first file is written."""
    for path, content in made.items():
        try:
            write(path, content)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
