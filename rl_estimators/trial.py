"""Options are tried out before there is a batch: a function of ours checks their ranges when it is called."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from rl_estimators.backends import use_backend
from rl_estimators.fields import FIELDS
from rl_estimators.registry import Spec

__all__ = ["try_out"]


def try_out(spec: Spec, inputs: Collection[str], given: Mapping[str, Any], rewards: int = 1) -> None:
    """Call a function of ours on one empty token. Random numbers go on as if nothing had been called.

    Args:
        spec: The function.
        inputs: What it gets beside its options: one response of one token, all zeros.
        given: Its options.
        rewards: How many rewards a response has, the K of :data:`~rl_estimators.fields.FIELDS`.

    Raises:
        InputError: an option is out of range, or does not go with another.
    """
    empty = {field: _empty(field, rewards) for field in inputs}
    with use_backend("torch"), torch.random.fork_rng(devices=[]):
        spec({**empty, **given})


def _empty(field: str, rewards: int) -> Any:
    if field == "index":
        return ["a"]
    return torch.zeros([rewards if dim == "K" else 1 for dim in FIELDS[field].dims])
