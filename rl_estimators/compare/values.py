"""One value of a row, checked: what it has to be, and what stands there instead."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_estimators.errors import InputError

__all__ = ["group_name", "number", "numbers", "shown", "step_number", "text"]

_LARGEST_STEP = 2**63


def number(row: Mapping[str, Any], name: str) -> float:
    """A number; null stands for NaN, as pandas and strict JSON have it, and true for 1.

    Raises:
        InputError: it is something else, or too large for a float.
    """
    return _float(name, row[name])


def numbers(row: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """A list of numbers, as :func:`number`.

    Raises:
        InputError: it is no list, or one of its entries no number.
    """
    value = row[name]
    if not isinstance(value, list):
        raise InputError(f"{name} is {shown(value)}, expected a list of numbers, one for each token")
    if all(type(entry) is float for entry in value):
        return np.array(value, dtype=np.float64)
    return np.array([_float(f"{name}[{at}]", entry) for at, entry in enumerate(value)], dtype=np.float64)


def text(row: Mapping[str, Any], name: str) -> str:
    """A text.

    Raises:
        InputError: it is something else.
    """
    value = row[name]
    if not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}, expected text")
    return value


def group_name(row: Mapping[str, Any], name: str) -> str | int:
    """A prompt's name.

    Raises:
        InputError: it is neither text nor a whole number.
    """
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{name} is {shown(value)}, expected text or a whole number")
    return value


def step_number(row: Mapping[str, Any], name: str = "step") -> int | None:
    """A training step; None if there is none.

    Raises:
        InputError: it is no whole number, or a huge one.
    """
    value = row.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or abs(value) >= _LARGEST_STEP:
        raise InputError(f"{name} is {shown(value)}, expected a whole number")
    return int(value)


def _float(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (bool, int, float)):
        raise InputError(f"{name} is {shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{name} is a whole number too large for a float") from None


def shown(value: Any) -> str:
    """A value as JSON, cut short."""
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    try:
        words = json.dumps(value)
    except (TypeError, ValueError):  # what Parquet may hold and JSON may not; an int of thousands of digits
        words = f"a {type(value).__name__}"
    return words if len(words) <= 40 else f"{words[:37]}..."
