"""Functions by name, for a command line: reward functions of one's own, and TRL's."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import trl.rewards

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean

__all__ = ["builtin_rewards", "find", "load_module"]


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


def load_module(name: str, key: str) -> ModuleType:
    """Import a module by its name, seen from the working directory as well, or a ``.py`` file by its path.

    Raises:
        InputError: there is no such module or file. What goes wrong inside of it is raised as it is.
    """
    if name.endswith(".py"):
        return _load_file(Path(name), key)
    if str(Path.cwd()) not in sys.path:  # a console script does not look here by itself
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            raise InputError(f"{key}: no module {missing!r}, looked from {Path.cwd()} as well") from None
        raise  # it is there, and misses something itself


def _load_file(path: Path, key: str) -> ModuleType:
    """As a script would be run: with its folder on the path."""
    if not path.is_file():
        raise InputError(f"{key}: no file {str(path)!r} in {Path.cwd()}")
    path = path.resolve()
    # one module a file, whichever settings name it
    name = f"rle_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # it ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
