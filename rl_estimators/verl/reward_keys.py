"""The option ``reward_keys``: under which names the reward function returns the components of its reward.

`gdpo` has the option itself. For any other estimator that asks for ``reward_components`` it is read here, so that
whoever writes one need not know where verl keeps what a reward function returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rl_estimators.errors import InputError
from rl_estimators.estimators.gdpo import stack_columns
from rl_estimators.registry import Spec

__all__ = ["OPTION", "missing", "names", "on_nothing", "read_here", "resolve"]

OPTION = "reward_keys"
_FIELD = "reward_components"


def read_here(spec: Spec) -> bool:
    """Whether the option is this module's to read: the estimator asks for components and has no such option."""
    return spec.asks_for(_FIELD) and OPTION not in spec.options


def names(spec: Spec, given: Mapping[str, Any]) -> list[str]:
    """The names among the options ``given``; none for an estimator that does not ask for components.

    Raises:
        InputError: they are no list of names.
    """
    keys = given.get(OPTION) if spec.asks_for(_FIELD) else None
    if keys is None:
        return []
    is_list = isinstance(keys, Sequence) and not isinstance(keys, str)
    if not is_list or not all(isinstance(key, str) for key in keys):
        raise InputError(
            f"{spec.name}: {OPTION} is {keys!r}, expected a list of the names under which the reward function returns "
            f"its components: {OPTION}=[NAME,...]"
        )
    return list(keys)


def missing(spec: Spec, given: Mapping[str, Any]) -> bool:
    """Whether the estimator cannot do without components and the options ``given`` name none."""
    needed = _FIELD in spec.required or OPTION in spec.options
    return needed and not given.get(OPTION)


def resolve(spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and options with ``reward_components`` ``(B, K)`` in place of names, where they are read here.

    Raises:
        InputError: no such column, or it holds no numbers.
    """
    if not read_here(spec):
        return dict(given)
    keys, columns = names(spec, given), given.get("non_tensor_batch")
    if not keys or columns is None:
        return _without(given)
    return _without(given) | {_FIELD: stack_columns(spec.name, keys, columns, given["token_level_rewards"])}


def on_nothing(spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the components of one empty response in place of their names, to try the options out on."""
    keys = names(spec, given)
    if keys:
        return _without(given) | {_FIELD: torch.zeros(1, len(keys))}
    return _without(given) if read_here(spec) else dict(given)


def _without(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != OPTION}
