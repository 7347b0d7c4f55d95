"""Modules by name, for a command line: those that register estimators of one's own, say."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from rl_estimators.errors import InputError

__all__ = ["load_module"]


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
