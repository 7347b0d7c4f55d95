"""The lines of verl's file logger (``trainer.logger=[file]``).

``{"step": 3, "data": {"critic/score/mean": 0.5, ...}}``
"""

import json
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from rl_estimators.plot.problems import Problems
from rl_estimators.plot.runs import Points, as_step

__all__ = ["LONGEST_LINE", "is_verl_log", "read"]

LONGEST_LINE = 2**20  # bytes; verl's have some thousand
_LOOKED_AT = 20  # lines, until one is verl's


def is_verl_log(head: bytes) -> bool:
    """Whether one of the first lines of a file is as verl writes them."""
    return any(isinstance(_parse(line), tuple) for line in head.splitlines()[:_LOOKED_AT])


def read(path: Path, points: Points, problems: Problems) -> None:
    """Add a log's numbers to ``points``.

    A last line that breaks off is normal while a job is running and only told; any other line that cannot be read is
    skipped, and refused if ``problems`` is strict.

    Raises:
        InputError: a line cannot be read and ``problems`` is strict.
    """
    with path.open("rb") as file:
        for number, line, whole in _lines(file):
            if line is None:
                problems.skip(path, f"line {number}", f"longer than {LONGEST_LINE} bytes")
                continue
            if not line.strip():
                continue
            found = _parse(line)
            if isinstance(found, tuple):
                step, data = found
                for name, value in data.items():
                    points.add(step, name, value)
            elif whole:
                problems.skip(path, f"line {number}", found)
            else:
                problems.tell(
                    f"{path}: line {number}, the last, breaks off: a job is writing it, or was stopped"
                )


def _lines(file: BufferedReader) -> Iterator[tuple[int, bytes | None, bool]]:
    """Each line's number, bytes (None: too many) and whether it ends; no more than the longest is in memory."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) <= LONGEST_LINE:
            yield number, line, line.endswith(b"\n")
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield number, None, True


def _parse(line: bytes) -> tuple[int, dict[str, Any]] | str:
    """A line's step and numbers, or what is wrong with it."""
    try:
        entry = json.loads(line.decode())
    except UnicodeDecodeError:
        return "no UTF-8 text"
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of too many digits
        return f"no JSON ({error})"
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), dict):
        return 'expected {"step": ..., "data": {...}}'
    step = as_step(entry.get("step"))
    return "its step is no whole number" if step is None else (step, entry["data"])
