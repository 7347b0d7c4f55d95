"""JSON lines, whoever wrote them: one object a line, and what is wrong with those that are none."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MOST_BRACKETS", "Wording", "json_lines", "json_object"]

_CHUNK = 2**20
# Lists and objects of a text in JSON, brackets within its strings counted alike: two bytes may become a hundred. 32 MiB
# of nothing else took 1.9 GiB.
MOST_BRACKETS = 2**20


@dataclass(frozen=True)
class Wording:
    """What is said of a line that is no object; ``error`` is what Python says.

    Attributes:
        long: It has more than ``most`` bytes.
        encoding: It is not UTF-8.
        syntax: It is not JSON; ``cut`` tells of a file that ends within it.
        digits: Python refuses to read a whole number of thousands of digits.
        brackets: It has more than ``most`` brackets that open.
        deep: Its lists and objects are nested deeper than Python goes.
        other: It is JSON of another ``kind``; ``whole`` tells what to do with a list.
    """

    long: str = "it is longer than {most:,} bytes"
    encoding: str = "it is not UTF-8 (byte {error.start})"
    syntax: str = "it is not JSON ({error.msg}, character {error.pos}){cut}"
    digits: str = "it holds a whole number of thousands of digits"
    brackets: str = "it holds more than {most:,} lists and objects"
    deep: str = "its lists and objects are nested too deep"
    other: str = "it is a JSON {kind}, expected an object{whole}"


def json_lines(
    path: Path, most: int, wording: Wording, advance: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[int, dict[str, Any] | str, bool]]:
    """Each line's number, from 1; its object or, as text, why it is none; and whether the line has an end.

    Blank lines are passed over. No more than ``most`` bytes of a line are in memory; of a longer one it is not asked
    whether it has an end.

    Args:
        path: A file in UTF-8.
        most: How many bytes a line may have, its end aside.
        wording: What is said of a line that is no object.
        advance: Told how many bytes have been read, line by line.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            advance(len(line))
            ended = line.endswith(b"\n")
            if len(line) > most and not ended:
                while (rest := file.readline(min(most, _CHUNK))) and not rest.endswith(b"\n"):
                    advance(len(rest))
                yield number, wording.long.format(most=most), True
            elif line.strip():
                yield number, json_object(line, wording, first=number == 1), ended


def json_object(line: bytes, wording: Wording, first: bool) -> dict[str, Any] | str:
    """A line's object or, as text, why it is none; the ``first`` of a file may begin with a byte order mark."""
    if line.count(b"[") + line.count(b"{") > MOST_BRACKETS:
        return wording.brackets.format(most=MOST_BRACKETS)
    try:
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return wording.encoding.format(error=error)
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; the file ends within it: is it still being written?"
        return wording.syntax.format(error=error, cut=cut)
    except ValueError as error:
        return wording.digits.format(error=error)
    except RecursionError as error:
        return wording.deep.format(error=error)
    if not isinstance(row, dict):
        whole = "; a whole file of it must be rewritten, one object a line" if isinstance(row, list) else ""
        return wording.other.format(kind=_kind(row), whole=whole)
    return row


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
