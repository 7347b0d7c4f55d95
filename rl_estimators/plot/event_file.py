"""TensorBoard's event files: of verl (``trainer.logger=[tensorboard]``) and of TRL (``report_to="tensorboard"``).

A file is a row of records: the length in 8 bytes, a check sum of it in 4, a protocol buffer, a check sum in 4. The
records are taken apart here rather than by TensorBoard's loader, which imports tensorflow where it is installed,
believes any length, and ends without a word at the first record that is damaged.
"""

import math
import struct
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from rl_estimators.errors import InputError
from rl_estimators.files.problems import Problems
from rl_estimators.plot.runs import Points, as_step

__all__ = ["LONGEST_RECORD", "is_event_file", "read", "started"]

LONGEST_RECORD = 2**24  # bytes; a number takes about a hundred, pictures and texts are of no use here
_HEADER, _SUM = 12, 4
_FLOAT, _DOUBLE = 1, 2  # DataType in TensorFlow's types.proto


def is_event_file(head: bytes) -> bool:
    """Whether the first record of a file says that it is one."""
    return b"brain.Event:" in head[_HEADER : _HEADER + 64]


def started(head: bytes) -> float:
    """When the file was begun, in seconds: its first record starts with that time; 0 if it cannot be told."""
    seconds: float = struct.unpack_from("<d", head, _HEADER + 1)[0] if len(head) >= _HEADER + 9 else 0.0
    return seconds if math.isfinite(seconds) else 0.0


def read(path: Path, points: Points, problems: Problems) -> None:
    """Add a file's scalars to ``points``.

    Raises:
        InputError: TensorBoard is not installed; or a record cannot be read and ``problems`` is strict.
    """
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise InputError(
            f"{path} is an event file of TensorBoard, and {error.name} is not installed: "
            "pip install 'rl-estimators[see]'"
        ) from None
    with path.open("rb") as file:
        for number, record in _records(path, file, problems):
            try:
                event = Event.FromString(record)
            except DecodeError:
                problems.skip(f"record {number}", "no event of TensorBoard", path)
                continue
            if as_step(event.step) is None:
                problems.skip(f"record {number}", f"its step is {event.step}", path)
                continue
            for value in event.summary.value:
                scalar = _scalar(value)
                if scalar is not None:
                    points.add(event.step, value.tag, scalar)


def _records(path: Path, file: BufferedReader, problems: Problems) -> Iterator[tuple[int, bytes]]:
    """The whole and undamaged records, with their numbers."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    number, left = 0, path.stat().st_size
    while left > 0:
        number += 1
        header = file.read(_HEADER)
        if len(header) == _HEADER and struct.pack("<I", masked_crc32c(header[:8])) != header[8:]:
            problems.skip(f"record {number} and all after it", "damaged: the check sum does not fit", path)
            return
        size = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else left
        left -= _HEADER + size + _SUM
        if left < 0:
            problems.tell(
                f"{path}: record {number}, the last, breaks off: a job is writing it, or was stopped"
            )
            return
        if size > LONGEST_RECORD:
            problems.skip(f"record {number}", f"longer than {LONGEST_RECORD} bytes", path)
            file.seek(size + _SUM, 1)
            continue
        record, found = file.read(size), file.read(_SUM)
        if struct.pack("<I", masked_crc32c(record)) != found:
            problems.skip(f"record {number}", "damaged: the check sum does not fit", path)
            continue
        yield number, record


def _scalar(value: Any) -> float | None:
    """The number in a summary, in either way in which they are written; None if it holds something else."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    tensor = value.tensor
    if not value.HasField("tensor") or tensor.tensor_shape.dim:
        return None
    for kind, numbers, form in ((_FLOAT, tensor.float_val, "<f"), (_DOUBLE, tensor.double_val, "<d")):
        if tensor.dtype != kind:
            continue
        if len(numbers) == 1:
            return float(numbers[0])
        if len(tensor.tensor_content) == struct.calcsize(form):
            return float(struct.unpack(form, tensor.tensor_content)[0])
    return None
