"""A session counts once in its group, however many outputs its agent loop gave.

An agent loop may return several outputs for one session, each a row of its own with the session's score. A
group statistic over rows would weigh chatty sessions more. verl reduces a session to its final output for
the estimator named ``grpo`` only; this does it for each of ours that asks for ``index``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rl_estimators.errors import InputError
from rl_estimators.masked import as_mask
from rl_estimators.verl.estimators import spec_of

__all__ = ["compute", "final_rows", "is_group_estimator"]


def is_group_estimator(name: str) -> bool:
    """Whether ``name`` is one of ours and compares responses within their group."""
    spec = spec_of(name)
    return spec is not None and "index" in (*spec.required, *spec.optional)


def final_rows(batch_keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """The row of each session's final output, and for every row the position of its session in that list.

    Args:
        batch_keys: verl's keys, ``{uid}_{session}_{output}``.

    Raises:
        InputError: a key is not of that form.
    """
    split = [_split(key) for key in batch_keys]
    sessions = [session for session, _ in split]
    last: dict[str, int] = {}
    for row, (session, output) in enumerate(split):
        if session not in last or output > split[last[session]][1]:
            last[session] = row
    position = {session: i for i, session in enumerate(last)}
    return list(last.values()), [position[session] for session in sessions]


def _split(key: str) -> tuple[str, int]:
    """A key's session, with its uid, and the number of the output."""
    session, _, output = key.rpartition("_")
    if "_" not in session or not output.isdecimal():
        raise InputError(
            f"verl's key of a row is {key!r}, expected {{uid}}_{{session}}_{{output}} with a number at the end: without "
            "it nothing tells which rows are one session. An agent-loop manager of your own must name its rows so"
        )
    return session, int(output)


def compute(
    original: Callable[..., Any], data: Any, batch_keys: Sequence[str], *args: Any, **kwargs: Any
) -> Any:
    """Estimate over the final outputs; the other outputs of a session get its advantage at every valid token."""
    finals, session_of = final_rows(batch_keys)
    if len(finals) == len(batch_keys):
        return original(data, batch_keys, *args, **kwargs)
    keys = [batch_keys[row] for row in finals]
    estimated = original(data.select_idxs(finals), keys, *args, **kwargs).batch
    mask = as_mask(data.batch["response_mask"])
    first = as_mask(estimated["response_mask"]).int().argmax(-1, keepdim=True)
    for column in ("advantages", "returns"):
        spread = estimated[column].gather(-1, first)[session_of].repeat(1, mask.shape[-1])
        spread[finals] = estimated[column]
        data.batch[column] = torch.where(mask, spread, 0)
    return data
