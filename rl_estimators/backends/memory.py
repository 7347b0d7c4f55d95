"""Memory for large outputs on the CPU, whose first writing can take longer than what is computed.

Memory that a process has just got is provided and cleared by the system page by page when it is first written to. Two
things make that cheaper than with ``torch.empty``: pages of 2 MiB in place of 4 KiB, and memory that has been there
before. A trainer makes outputs of the same size in every step and lets go of the last step's: of those the last serve
the next, 64 MiB of them at most, GAE's two at 1024 x 8192.
"""

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["empty", "large"]

Array = np.ndarray[Any, Any]
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_HUGE = 4 << 20  # bytes from which numpy asks for huge pages
_LINE = 1024  # bytes by which outputs are kept apart modulo a page
_PAGE = 4096
_MOST = (64 << 20) + 4 * _PAGE  # bytes that are kept

_spare: list[Array] = []  # of one size; taken and given by operations on a list, which threads cannot divide


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, place: int = 0) -> Tensor:
    """An output to be written.

    On the CPU a large one comes from numpy, which asks for huge pages where torch does not. Its start is moved by
    ``place + 1`` lines within a page: rows of outputs and inputs that start at the same place in a page, as rows of
    2^k tokens do, would evict each other from the first-level cache.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _HUGE or not (dtype == torch.bool or dtype in _NUMPY):
        return torch.empty(shape, dtype=dtype, device=device)
    if dtype == torch.bool:  # a mask, which goes when its call ends
        return torch.from_numpy(np.empty(shape, np.bool_))
    memory = _take(size + 2 * _PAGE)
    skip = (_LINE * (place + 1) - memory.ctypes.data) % _PAGE
    out: Array = memory[skip : skip + size].view(_NUMPY[dtype]).reshape(shape)
    # torch holds this very array for as long as any tensor or array shares its memory
    weakref.finalize(out, _give, memory).atexit = False
    return torch.from_numpy(out)


def large(out: Tensor | Array) -> bool:
    """Whether an output will have left the processor's cache before anybody reads it."""
    return out.nbytes >= _HUGE


def _take(size: int) -> Array:
    while True:
        try:
            memory = _spare.pop()
        except IndexError:
            return np.empty(size, np.uint8)
        if memory.nbytes == size:
            return memory
        del memory  # before there is more


def _give(memory: Array) -> None:
    if memory.nbytes <= _MOST:
        if any(other.nbytes != memory.nbytes for other in _spare[:]):
            _spare.clear()
        _spare.append(memory)
        del _spare[: -(_MOST // memory.nbytes)]
