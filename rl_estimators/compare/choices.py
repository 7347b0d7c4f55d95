"""Which estimators are compared, and with which options: ``grpo,grpo:norm_by_std=false,rloo``."""

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rl_estimators.calls import OF_ESTIMATE
from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS
from rl_estimators.registry import ADV_ESTIMATORS

__all__ = ["Choice", "all_choices", "read_choices"]

_WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Choice:
    """An estimator with its options.

    Attributes:
        label: How the user wrote it; what it is called in everything that is shown.
        name: Its name in the registry.
        options: Given by the user.
    """

    label: str
    name: str
    options: Mapping[str, Any]


def all_choices() -> list[Choice]:
    """Every estimator there is, with the options it has by default."""
    return [Choice(name, name, {}) for name in ADV_ESTIMATORS.names()]


def read_choices(words: Iterable[str]) -> list[Choice]:
    """Estimators as a user writes them, separated by commas.

    Options follow a name after a colon, ``grpo:norm_by_std=false,compat=verl``: a part with ``=`` and no colon before it
    belongs to the name before. Values are JSON, ``true``, ``none`` or plain words; ``whitening.ddof=0`` is an entry of a
    mapping.

    Raises:
        InputError: a part is none of this, an option is unknown or an input, or two estimators have one label.
        UnknownNameError: there is no such estimator.
    """
    choices: list[Choice] = []
    for label, name, options in _split(words):
        spec = ADV_ESTIMATORS.spec(name)
        for option in options:
            if option in FIELDS:
                raise InputError(f"{label}: {option} is an input, which the file has to hold, and no option")
        try:
            spec.options_from({k: v for k, v in options.items() if k not in OF_ESTIMATE}, also=OF_ESTIMATE)
        except InputError as error:
            raise InputError(f"--estimators {label}: {error}") from error
        if any(choice.label == label for choice in choices):
            raise InputError(f"--estimators names {label!r} twice")
        choices.append(Choice(label, name, options))
    if not choices:
        raise InputError("--estimators names none")
    return choices


def _split(words: Iterable[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """``(label, name, options)`` of each."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for part in _parts(",".join(words)):
        head, equals, _ = part.partition("=")
        if equals and ":" not in head:
            if not found:
                raise InputError(f"--estimators begins with {part!r}, expected the name of an estimator")
            label, name, options = found.pop()
            label += ("," if ":" in label else ":") + part
            setting = part
        else:
            name, _, setting = part.partition(":")
            label, name, options = part, name.strip(), {}
        if setting:
            _set(options, setting, label)
        found.append((label, name, options))
    return found


def _parts(words: str) -> list[str]:
    """Split at the commas that no bracket holds."""
    parts, depth = [""], 0
    for sign in words:
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _set(options: dict[str, Any], setting: str, label: str) -> None:
    path, equals, value = setting.partition("=")
    *above, last = (name.strip() for name in path.split("."))
    if not equals or not last:
        raise InputError(f"--estimators {label}: {setting!r} is no option, expected NAME=VALUE")
    place = options
    for name in above:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise InputError(f"--estimators {label}: {name} is given as a value and by its entries; keep one")
    if last in place:
        raise InputError(f"--estimators {label}: {path.strip()} is given twice")
    place[last] = _value(value.strip())


def _value(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for read in (json.loads, ast.literal_eval):
        try:
            return read(word)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    inside = word[1:-1].strip()
    if word.startswith("[") and word.endswith("]"):  # a list of plain words
        return [_value(part) for part in _parts(inside)]
    return word
