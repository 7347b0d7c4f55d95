"""Where to write: refused before any work is done."""

import os
from collections.abc import Iterable
from pathlib import Path

from rl_estimators.errors import InputError

__all__ = ["check_output"]


def check_output(option: str, path: Path, inputs: Iterable[Path]) -> None:
    """Refuse, before any work is done, a path that cannot be written, or that would overwrite what is read.

    Raises:
        InputError: it names the option and the path.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist")
    if path.is_dir():
        raise InputError(f"{option} {path}: it is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: the folder {folder} cannot be written to")
    if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
        raise InputError(f"{option} {path}: it is one of the files to read")
