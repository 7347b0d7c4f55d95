"""Files that are written, whole or not at all."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rl_estimators.errors import InputError

__all__ = ["check_output", "write"]


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


def write(option: str, path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there.

    Raises:
        InputError: it cannot be written.
    """
    part = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=path.name, suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            file.write(content)
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise InputError(f"{option} {path}: it cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    """What the user keeps others from; the temporary file keeps them from everything."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
