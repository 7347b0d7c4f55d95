"""Options by name as a configuration gives them: is there such an option, and is the value of its type?

Which types an option takes, its annotation or its default tells. omegaconf's structured configs would check them
too, but turn "0.3" into 0.3, 1 and "yes" into true and 3 into "3" without a word, refuse the integer 1 for
``float | str``, and know no ``Literal``; so they are checked here. A value from a command line has the type that
Hydra guessed: ``0.5`` is a number, ``0,5`` and ``half`` are not, and a loss would find out in the first update.
"""

import inspect
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS
from rl_estimators.hints import did_you_mean
from rl_estimators.registry import Spec

__all__ = ["check", "plain"]

_WORDS = {
    float: "a number",
    int: "an integer",
    bool: "true or false",
    str: "a string",
    types.NoneType: "null",
}


def check(path: str, spec: Spec, given: Mapping[str, Any], hidden: Collection[str] = ()) -> None:
    """Check the options ``given`` for ``spec``; ``path`` is the key they stand under.

    Args:
        path: For messages.
        spec: What the options are for.
        given: The options, plain.
        hidden: Options that are not for users to set.

    Raises:
        InputError: there is no such option, or a value is of another type.
    """
    known = {name: default for name, default in spec.options.items() if name not in hidden}
    for option, value in given.items():
        if option in known:
            _check_type(f"{path}.{option}", spec, option, value)
        elif option in FIELDS or option == "config":
            raise InputError(f"{path}.{option}: verl hands that to {spec.name} itself; leave it out")
        elif not spec.takes_any:
            offered = ", ".join(f"{name}{_default('=', default)}" for name, default in known.items())
            raise InputError(
                f"{path}.{option}: {spec.name} has no such option.{did_you_mean(option, known)} Its options: "
                f"{offered or 'none'}. If a preset brought it along, ~{path}.{option} removes it."
            )


def plain(node: Any) -> Any:
    """Containers of omegaconf as dictionaries and lists, with their references resolved; anything else as it is."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _check_type(path: str, spec: Spec, option: str, value: Any) -> None:
    """An integer is a number; true and false are not."""
    accepted = _accepted(spec, option)
    if accepted and type(value) not in accepted and not (type(value) is int and float in accepted):
        words = " or ".join(_WORDS[one] for one in accepted)
        default = _default("; its default is ", spec.options[option])
        raise InputError(f"{path} is {value!r} ({type(value).__name__}), expected {words}{default}")


def _accepted(spec: Spec, option: str) -> tuple[type, ...]:
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


def _default(prefix: str, default: Any) -> str:
    return "" if default is inspect.Parameter.empty else f"{prefix}{default!r}"
