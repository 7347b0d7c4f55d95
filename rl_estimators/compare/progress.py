"""A bar on the terminal while long files are read."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["progress"]

_LONG = 8 * 2**20  # bytes: below, the bar would be gone before it is seen


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is to be told the bytes that have been read.

    Nothing is drawn for short inputs, into a file or a pipe, or where tqdm (extra ``see``) is not installed: no number
    depends on it.
    """
    if total < _LONG or not sys.stderr.isatty() or find_spec("tqdm") is None:
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", leave=False, file=sys.stderr) as bar:
        yield lambda count: bar.update(count) and None
