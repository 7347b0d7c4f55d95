"""The JSON lines of this package: one response a line.

A line is an object with

=======================  ==============================================================================================
``prompt``               text, or messages; responses to the same prompt of a step are a group
``uid``                  text or whole number: the group's name, where the prompt's text does not tell
``response``             text, messages, or the list of its tokens as text; may be left out if a list gives the length
``reward``               a number for the response; NaN or null: it could not be scored
``token_level_rewards``  in its place a list, one for each token
``reward_components``    in its place, or beside it, several rewards: an object of names and numbers, or a list
``mask``                 list of 1 (written by the policy) and 0 (tool output, say); without it all are 1
``values``               list: the critic's value before each token
``truncated``            true where the response was cut off, with ``bootstrap_value``: the critic's value of what follows
``reward_baseline``      the reward of the prompt's greedy response
``step``                 whole number: the training step, a batch of its own
=======================  ==============================================================================================

and any other per-token input of :data:`rl_estimators.fields.FIELDS` as a list under its name (``old_log_probs``, say). A
reward is needed, all else may be left out. What else a line has is not read, and named.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_estimators.compare import conversation, values
from rl_estimators.compare.record import Record
from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS
from rl_estimators.hints import did_you_mean

__all__ = ["PLACEHOLDER", "known", "parse"]

PLACEHOLDER = "\u00b7"  # stands for a token whose text is not known
_SHORT = {
    "mask": "response_mask",
    "reward_baseline": "reward_baselines",
    "bootstrap_value": "bootstrap_values",
}
_NAMED = 20  # a line may have any number of keys
_REWARDS = ("reward", "token_level_rewards", "reward_components")
_OTHER = ("prompt", "uid", "response", "reward", "reward_components", "step")
_TOKENS = {name for name, field in FIELDS.items() if field.dims == ("B", "T")}
_NUMBERS = {name for name, field in FIELDS.items() if field.dims == ("B",) and name != "index"}


def known(name: str) -> bool:
    """Whether a key is one that is read."""
    return name in _OTHER or _SHORT.get(name, name) in _TOKENS | _NUMBERS


def parse(row: Mapping[str, Any], place: str) -> Record:
    """A line of it.

    Raises:
        InputError: the reason why it cannot be read.
    """
    row = _long_names(row)
    if not any(name in row for name in _REWARDS):
        others = islice((name for name in row if not known(name)), _NAMED)
        near = next(filter(None, (did_you_mean(name, _REWARDS) for name in others)), "")
        raise InputError(f"it has none of {', '.join(_REWARDS)}.{near}")
    if "reward" in row and "token_level_rewards" in row:
        raise InputError("it has both reward and token_level_rewards; keep one")
    tokens = {name: values.numbers(row, name) for name in row if name in _TOKENS}
    _check_mask("mask", tokens.get("response_mask"))
    numbers = {name: values.number(row, name) for name in row if name in _NUMBERS}
    if numbers.get("truncated", 0) not in (0, 1):
        raise InputError(f"truncated is {values.shown(row['truncated'])}, expected true or false")
    prompt, apart = conversation.prompt_of(row.get("prompt"))
    return Record(
        place=place,
        step=values.step_number(row),
        prompt=prompt,
        group=values.group_name(row, "uid") if row.get("uid") is not None else apart,
        response=_response(row, tokens),
        reward=values.number(row, "reward") if "reward" in row else None,
        tokens=tokens,
        numbers=numbers,
        components=_components(row),
    )


def _long_names(row: Mapping[str, Any]) -> dict[str, Any]:
    for short, name in _SHORT.items():
        if short in row and name in row:
            raise InputError(f"it has both {short} and {name}; keep one")
    return {_SHORT.get(name, name): value for name, value in row.items()}


def _response(row: Mapping[str, Any], tokens: Mapping[str, NDArray[np.float64]]) -> "list[str] | Any":
    told = row.get("response")
    if told is None:
        if not tokens:
            raise InputError("it has neither a response nor a list that gives its length")
        return [PLACEHOLDER] * len(next(iter(tokens.values())))
    if isinstance(told, list) and all(isinstance(piece, str) for piece in told):
        return told
    return conversation.parts(told, "response")


def _components(row: Mapping[str, Any]) -> dict[str, float]:
    found = row.get("reward_components")
    if found is None:
        return {}
    named = {str(at): value for at, value in enumerate(found)} if isinstance(found, list) else found
    if not isinstance(named, dict) or not named:
        raise InputError("reward_components is neither an object nor a list of numbers, or it is empty")
    return {name: values.number(named, name) for name in named}


def _check_mask(name: str, mask: "NDArray[np.float64] | None") -> None:
    if mask is not None and not np.isin(mask, (0, 1)).all():
        odd = mask[~np.isin(mask, (0, 1))][0]
        raise InputError(f"{name} holds {odd:g}, expected 0 and 1")
