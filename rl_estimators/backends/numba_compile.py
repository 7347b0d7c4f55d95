"""How the kernels are compiled."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """Compile at the first call, without the GIL, and keep the result on disk where there is a place for it.

    No flag that would let the compiler fuse or reorder is set, but where somebody asks for it. What is kept is found
    again by the age of the function's own file: after a change in a file whose functions it calls, ``make clean``.
    """
    options = {"nogil": True, "error_model": "numpy", **options}

    def decorator(function: F) -> F:
        try:
            found: F = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            found = numba.njit(**options)(function)
        return found

    return decorator
