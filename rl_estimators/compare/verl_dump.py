"""verl's rollouts, as it writes them into ``trainer.rollout_data_dir`` or ``trainer.validation_data_dir``.

A file ``N.jsonl`` holds step N, a response a line: ``input``, ``output``, ``score``, ``gts``, ``step`` and, from the v1
trainer, ``uid``: the key ``{uid}_{session}_{output}`` of a row. The trainer without v1 writes no uid, but what the reward
function returned beside the score. Neither writes the mask: a tool's output counts as the policy's own here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rl_estimators.compare import values
from rl_estimators.compare.record import Record
from rl_estimators.errors import InputError

__all__ = ["final_outputs", "is_row", "parse"]

_KEY = re.compile(r"(?P<uid>.+)_(?P<session>[0-9]{1,18})_(?P<output>[0-9]{1,18})", re.DOTALL)
_OWN = {"input", "output", "score", "gts", "step", "uid", "request_id"}


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a line is one of verl's."""
    return "input" in row and "output" in row and "score" in row


def parse(row: Mapping[str, Any], place: str) -> Record:
    """A line of it.

    Raises:
        InputError: the reason why it cannot be read.
    """
    lacking = [name for name in ("input", "output", "score") if name not in row]
    if lacking:
        raise InputError(f"it has no {', '.join(lacking)}, which verl writes into every line")
    group: str | int = values.text(row, "input")
    session = None
    if row.get("uid") is not None:
        group = values.group_name(row, "uid")
        if key := _KEY.fullmatch(str(group)):
            group, session = key["uid"], (f"{key['uid']}_{key['session']}", int(key["output"]))
    return Record(
        place=place,
        step=values.step_number(row),
        prompt=row["input"],
        group=group,
        response=((values.text(row, "output"), True),),
        reward=values.number(row, "score"),
        columns={name: float(row[name]) for name in row if name not in _OWN and _is_number(row[name])},
        session=session,
    )


def final_outputs(records: Sequence[Record]) -> list[Record]:
    """One response for each session of an agent loop, its final output, as verl has it for GRPO.

    Every output has the session's score. Counted one by one, a chatty session would weigh more in its group.
    """
    kept: dict[object, Record] = {}
    for number, record in enumerate(records):
        key = number if record.session is None else record.session[0]
        before = kept.get(key)
        if not (before and before.session and record.session and record.session[1] < before.session[1]):
            kept[key] = record
    return [*kept.values()]


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)
