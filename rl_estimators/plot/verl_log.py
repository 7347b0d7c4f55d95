"""The lines of verl's file logger (``trainer.logger=[file]``).

``{"step": 3, "data": {"critic/score/mean": 0.5, ...}}``
"""

from pathlib import Path
from typing import Any

from rl_estimators.files.lines import Wording, json_lines, json_object
from rl_estimators.files.problems import Problems
from rl_estimators.plot.runs import Points, as_step

__all__ = ["LONGEST_LINE", "is_verl_log", "read"]

LONGEST_LINE = 2**20  # bytes; verl's have some thousand
_LOOKED_AT = 20  # lines, until one is verl's
_EXPECTED = 'expected {"step": ..., "data": {...}}'
_NO_JSON = "no JSON ({error})"
_WORDING = Wording(
    long="longer than {most} bytes",
    encoding="no UTF-8 text",
    syntax=_NO_JSON,
    digits=_NO_JSON,
    deep=_NO_JSON,
    other=_EXPECTED.replace("{", "{{").replace("}", "}}"),
)


def is_verl_log(head: bytes) -> bool:
    """Whether one of the first lines of a file is as verl writes them."""
    lines = head.splitlines()[:_LOOKED_AT]
    return any(
        isinstance(_numbers(json_object(line, _WORDING, first=not number)), tuple)
        for number, line in enumerate(lines)
    )


def read(path: Path, points: Points, problems: Problems) -> None:
    """Add a log's numbers to ``points``.

    A last line that breaks off is normal while a job is running and only told; any other line that cannot be read is
    skipped, and refused if ``problems`` is strict.

    Raises:
        InputError: a line cannot be read and ``problems`` is strict.
    """
    for number, row, ended in json_lines(path, LONGEST_LINE, _WORDING):
        found = _numbers(row)
        if isinstance(found, tuple):
            step, data = found
            for name, value in data.items():
                points.add(step, name, value)
        elif ended:
            problems.skip(f"line {number}", found, path)
        else:
            problems.tell(f"{path}: line {number}, the last, breaks off: a job is writing it, or was stopped")


def _numbers(row: dict[str, Any] | str) -> tuple[int, dict[str, Any]] | str:
    """A line's step and numbers, or what is wrong with it."""
    if isinstance(row, str):
        return row
    if not isinstance(row.get("data"), dict):
        return _EXPECTED
    step = as_step(row.get("step"))
    return "its step is no whole number" if step is None else (step, row["data"])
