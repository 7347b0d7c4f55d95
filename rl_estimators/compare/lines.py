"""JSON lines, whoever wrote them: one object a line, and what is wrong with those that are none."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rl_estimators.compare.limits import MOST_LINE

__all__ = ["json_lines"]

_CHUNK = 2**20


def json_lines(path: Path, advance: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line's number, from 1, and its object or, as text, why it is none. Blank lines are passed over.

    Args:
        path: A file in UTF-8.
        advance: Told how many bytes have been read, line by line.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE + 1):
            number += 1
            advance(len(line))
            if len(line) > MOST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                    advance(len(rest))
                yield number, f"it is longer than {MOST_LINE:,} bytes"
            elif line.strip():
                yield number, _parsed(line, first=number == 1)


def _parsed(line: bytes, first: bool) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; the file ends within it: is it still being written?"
        return f"it is not JSON ({error.msg}, character {error.pos}){cut}"
    except ValueError:  # Python refuses to read a whole number of thousands of digits
        return "it holds a whole number of thousands of digits"
    except RecursionError:
        return "its lists and objects are nested too deep"
    if not isinstance(row, dict):
        whole = "; a whole file of it must be rewritten, one object a line" if isinstance(row, list) else ""
        return f"it is a JSON {_kind(row)}, expected an object{whole}"
    return row


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
