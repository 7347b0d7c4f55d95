"""Which types an option takes, as far as its annotation or its default tells.

Values from a command line have the type that Hydra guessed: ``0.5`` is a number, ``0,5`` and ``half`` are not, and a
loss would find out in the first update.
"""

import inspect
import types
import typing
from typing import Any

from rl_estimators.registry import Spec

__all__ = ["accepted", "fits", "in_words"]

_WORDS = {
    float: "a number",
    int: "an integer",
    bool: "true or false",
    str: "a string",
    types.NoneType: "null",
}


def accepted(spec: Spec, option: str) -> tuple[type, ...]:
    """The plain types that ``option`` takes; empty if that cannot be told, and then anything goes."""
    try:
        annotation = inspect.signature(spec.function, eval_str=True).parameters[option].annotation
    except NameError:  # an annotation that only a type checker understands
        return ()
    if annotation is inspect.Parameter.empty:
        default = spec.options[option]
        return () if default is None or type(default) not in _WORDS else (type(default),)
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    found: list[type] = []
    for one in typing.get_args(annotation) if union else (annotation,):
        literal = typing.get_origin(one) is typing.Literal
        found += {type(value) for value in typing.get_args(one)} if literal else [one]
    return tuple(found) if set(found) <= set(_WORDS) else ()


def fits(value: Any, types_accepted: tuple[type, ...]) -> bool:
    """Whether ``value`` is of one of the types; an integer is a number, true and false are not."""
    return type(value) in types_accepted or (type(value) is int and float in types_accepted)


def in_words(types_accepted: tuple[type, ...]) -> str:
    """The types as a configuration's user knows them."""
    return " or ".join(_WORDS[one] for one in types_accepted)
