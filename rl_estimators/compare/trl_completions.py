"""TRL's completions, as its trainers and ours write them with ``log_completions=True``.

A file ``OUTPUT_DIR/completions/completions_N.parquet`` holds what step N logged: ``step``, ``prompt`` and ``completion``
(text or messages), a column of floats for each reward function, columns that a reward function logs on the side, and
``advantage``. Nothing tells the rewards from other columns of floats: without ``--reward-weights`` all of them count.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rl_estimators.compare import conversation, values
from rl_estimators.compare.limits import MOST_RESPONSES
from rl_estimators.compare.record import Record
from rl_estimators.compare.weights import Weights
from rl_estimators.errors import InputError

__all__ = ["rows"]

_OWN = ("step", "prompt", "completion", "advantage")
_AT_ONCE = 256  # rows: a repeated text takes no room in the file, but does here
_ROOM = 2**28  # bytes that this many rows may take


def rows(path: Path, source: str, weights: Weights) -> Iterator[tuple[str, Callable[[], Record]]]:
    """Each row's place, and a function that reads it or raises InputError.

    Args:
        path: The file.
        source: Its name, for messages.
        weights: They may name the columns that are rewards.

    Raises:
        InputError: it is no such file, or no column holds a reward; pyarrow is not installed.
    """
    parquet = _open(path, source)
    names = _reward_names(parquet.schema_arrow, source, weights)
    texts: dict[str, str] = {}  # a text that the file holds once is kept once, in however many rows it stands
    columns = [name for name in _OWN if name in parquet.schema_arrow.names] + names
    try:
        number = 0
        for batch in parquet.iter_batches(batch_size=_at_once(parquet.metadata), columns=columns):
            batch.validate(full=True)
            for row in batch.to_pylist():
                number += 1
                place = f"{source}, row {number}"
                yield place, partial(_record, row, place, names, texts)
    except (OSError, ValueError, MemoryError) as error:  # pyarrow's own errors derive from these
        raise InputError(f"{source}: damaged: {error}") from error


def _reward_names(schema: Any, source: str, weights: Weights) -> list[str]:
    """The columns that are rewards: those that are named, else all of floats.

    Raises:
        InputError: there is none; one that is named is not there, or holds no numbers.
    """
    import pyarrow

    types = {field.name: field.type for field in schema if field.name not in _OWN}
    floats = [name for name, kind in types.items() if pyarrow.types.is_floating(kind)]
    named = weights.names()
    weights.of([*types] if named else floats)
    for name in named:
        kind = types[name]
        if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or kind == pyarrow.bool_()):
            raise InputError(f"{source}: the column {name!r} holds {kind}, expected numbers")
    if not (named or floats):
        raise InputError(
            f"{source}: no column holds a reward function's numbers (floats), only {', '.join(types) or 'none'}; "
            "name one with --reward-weights NAME=1"
        )
    return named or floats


def _at_once(metadata: Any) -> int:
    """How many rows to unpack together; no text is longer than the unpacked part of its column that holds it."""
    longest = max(
        (
            metadata.row_group(group).column(column).total_uncompressed_size
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ),
        default=1,
    )
    return max(1, min(_AT_ONCE, _ROOM // max(longest, 1)))


def _open(path: Path, source: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{source}: reading Parquet needs pyarrow: pip install 'rl-estimators[see]'"
        ) from None
    try:
        parquet = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source}: no whole Parquet file, cut short or still being written: {error}"
        ) from error
    _check_columns(parquet, source)
    return parquet


def _check_columns(parquet: Any, source: str) -> None:
    import pyarrow

    schema = parquet.schema_arrow
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{source}: two columns have one name: {', '.join(schema.names)}")
    for name in ("prompt", "completion"):
        if name not in schema.names:
            raise InputError(
                f"{source}: no completions of TRL: it has no column {name!r}, but {', '.join(schema.names) or 'none'}"
            )
        kind = schema.field(name).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or _is_list(kind)):
            raise InputError(
                f"{source}: the column {name!r} holds {kind}, expected text or lists of messages"
            )
    for name in ("step", "advantage"):
        kind = schema.field(name).type if name in schema.names else pyarrow.float64()
        if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
            raise InputError(f"{source}: the column {name!r} holds {kind}, expected numbers")
    if parquet.metadata.num_rows > MOST_RESPONSES:
        raise InputError(f"{source}: {parquet.metadata.num_rows:,} rows, more than {MOST_RESPONSES:,}")


def _is_list(kind: Any) -> bool:
    import pyarrow

    whole = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return bool(whole and pyarrow.types.is_struct(kind.value_type))


def _record(row: dict[str, Any], place: str, names: list[str], texts: dict[str, str]) -> Record:
    prompt, apart = (text and texts.setdefault(text, text) for text in conversation.prompt_of(row["prompt"]))
    said = conversation.parts(row["completion"], "completion")
    return Record(
        place=place,
        step=values.step_number(row),
        prompt=prompt,
        group=apart,
        response=tuple((texts.setdefault(text, text), written) for text, written in said),
        components={name: values.number(row, name) for name in names},
        logged=values.number(row, "advantage") if "advantage" in row else None,
    )
