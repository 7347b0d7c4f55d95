"""Files that are written, whole or not at all, and what a picture may be called."""

import os
import tempfile
from pathlib import Path

from rl_estimators.errors import InputError

__all__ = ["check_png", "write"]


def check_png(option: str, path: Path) -> None:
    """Refuse another name for a picture: programs go by it.

    Raises:
        InputError: it names the option and the path.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{option} {path}: the picture is a PNG; give it a name that ends in .png")


def write(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there.

    A link stays, and the file that it leads to is replaced. What is there and is no file, such as ``/dev/stdout``, is
    written to as it is.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)
        return
    place = path.resolve()
    part = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=place.parent, prefix=place.name, suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            file.write(content)
        part.chmod(0o666 & ~_umask())
        part.replace(place)
    except OSError:
        if part is not None:
            part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """What the user keeps others from; the temporary file keeps them from everything."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
