"""Functions by name, for a command line: reward functions of one's own, and TRL's."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import trl.rewards

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean
from rl_estimators.modules import load_module

__all__ = ["builtin_rewards", "find"]


def find(name: str, key: str, builtin: Mapping[str, Callable[..., Any]] | None = None) -> Callable[..., Any]:
    """The function of that name.

    Args:
        name: ``package.module.function``, ``path/to/file.py:function``, or a key of ``builtin``. With
            ``(option=value, ...)`` behind it, what the function returns when called with these options.
        key: The setting that the name was given for.
        builtin: Functions known by a name alone.

    Raises:
        InputError: there is no such function.
    """
    path, options = _split_call(name, key)
    found = (builtin or {}).get(path)
    if found is None:
        found = _attribute(path, key, builtin or {})
    if options is not None:
        return _made(found, options, name, key)
    if path in (builtin or {}) and path.startswith("get_"):
        raise InputError(
            f"{key}: {path} makes a reward function; write {path}({_parameters(found)}) with values"
        )
    return found


def builtin_rewards() -> dict[str, Callable[..., Any]]:
    """TRL's own reward functions by name, and the functions (``get_...``) that make some."""
    found = {name: getattr(trl.rewards, name) for name in trl.rewards.__all__}
    return {name: function for name, function in found.items() if inspect.isfunction(function)}


def _attribute(path: str, key: str, builtin: Mapping[str, Any]) -> Callable[..., Any]:
    file, colon, name = path.rpartition(":")
    if not (colon and file.endswith(".py")):
        file, _, name = path.rpartition(".")
    if not (file and name):
        known = f"one of {', '.join(sorted(builtin))}, " if builtin else ""
        raise InputError(
            f"{key}: {path!r} is unknown; expected {known}package.module.function or path/to/file.py:function."
            + did_you_mean(path, builtin)
        )
    module = load_module(file, key)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [one for one, value in vars(module).items() if callable(value) and one[0] != "_"]
        what = "has no function" if found is None else "has something that is not a function under"
        raise InputError(f"{key}: {file} {what} {name!r}.{did_you_mean(name, functions)}")
    return found  # type: ignore[no-any-return]


def _split_call(name: str, key: str) -> tuple[str, dict[str, Any] | None]:
    """``make(scale=2)`` as ``make`` and ``{"scale": 2}``; without parentheses, None for the options."""
    path, bracket, rest = name.partition("(")
    if not bracket:
        return name, None
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            raise ValueError
        return path, {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError):
        raise InputError(
            f"{key}: cannot read {name!r}; expected name(option=value, ...) with plain values"
        ) from None


def _made(factory: Callable[..., Any], options: Mapping[str, Any], name: str, key: str) -> Callable[..., Any]:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise InputError(f"{key}: {name}: {error}; it takes ({_parameters(factory)})") from None
    made = factory(**options)
    if not callable(made):
        raise InputError(f"{key}: {name} returned {made!r}, expected a function")
    return made  # type: ignore[no-any-return]


def _parameters(function: Callable[..., Any]) -> str:
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(function).parameters.items()
    )
