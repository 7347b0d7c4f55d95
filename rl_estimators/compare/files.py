"""Which files there are, and what kind each is: its first bytes tell, not its name."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rl_estimators.errors import InputError

__all__ = ["files_of", "kind_of"]

_SUFFIXES = (".jsonl", ".parquet", ".pt", ".safetensors")


def files_of(paths: Iterable[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Each file, and whether it was named itself rather than found in a folder; a folder's in the order of their numbers.

    Of a folder with TRL's ``completions`` in it, these are taken: it is a run's ``output_dir``.

    Raises:
        InputError: a path is not there, or a folder has no file of a kind that is read.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_file():
            yield path, True
            continue
        if not path.is_dir():
            raise InputError(
                f"{path}: it is no regular file; what comes through a pipe has to be saved first"
            )
        files = _inside(path / "completions") or _inside(path)
        if not files:
            raise InputError(f"{path}: the folder holds no {', '.join(_SUFFIXES)}")
        for file in files:
            yield file, False


def kind_of(path: Path, source: str) -> str:
    """``trl``, ``tensors`` or ``lines``.

    Raises:
        InputError: it is empty, or of a kind that is not read.
    """
    with path.open("rb") as file:
        head = file.peek(16)[:16]
    if not head:
        raise InputError(f"{source}: it is empty")
    if head.startswith(b"\x1f\x8b"):
        raise InputError(f"{source}: it is compressed; unpack it with gunzip")
    if head.startswith(b"PAR1"):
        return "trl"
    if head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix == ".pt":
        return "tensors"
    # a header's length in eight bytes, then the header, JSON
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and b"\0" in head[:8]):
        return "tensors"
    return "lines"


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """2.jsonl before 10.jsonl."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
