"""Which kernels run: those of ``torch``, ``numba`` or ``triton``.

Without a word from the user the fastest that is installed: numba's for tensors on the CPU, triton's for those on a CUDA
device, torch's for all else. ``RL_ESTIMATORS_BACKEND`` or ``backend=`` names another. A backend serves its own
device; tensors elsewhere, and what it has no kernel for (triton: fp64), go to torch's, which serve them all.

A backend that cannot be imported or compiled is replaced by torch's, with one warning: its numbers agree to rounding.
"""

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType

from torch import Tensor

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean

__all__ = ["BACKENDS", "VARIABLE", "backend_for", "name_for", "use_backend"]

BACKENDS = ("torch", "numba", "triton")
VARIABLE = "RL_ESTIMATORS_BACKEND"
_DEVICE = {"numba": "cpu", "triton": "cuda"}
_FASTEST = {device: name for name, device in _DEVICE.items()}
_MODULE = {name: f"rl_estimators.backends.{name}_rows" for name in BACKENDS}
_asked: ContextVar[str | None] = ContextVar("rl_estimators_backend", default=None)


def use_backend(name: str | None) -> AbstractContextManager[None]:
    """Have everything inside computed by the backend ``name``, whatever the environment says; None changes nothing.

    Raises:
        InputError: no such backend.
    """
    return nullcontext() if name is None else _asking(_known(name, "backend"))


@contextmanager
def _asking(name: str | None) -> Iterator[None]:
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def name_for(x: Tensor) -> str:
    """The backend that computes with tensors on the device of ``x``.

    Raises:
        InputError: the environment names no backend.
    """
    name = _asked.get() or _known(os.environ.get(VARIABLE) or None, VARIABLE)
    device = "cpu" if x.is_cpu else x.device.type  # the latter takes three times as long
    if name is None:
        name = _FASTEST.get(device, "torch")
        if not _installed(name):
            return "torch"
    serves = "cpu" if name == "triton" and _interpreted() else _DEVICE.get(name, device)
    return name if device == serves and _works(name) else "torch"


def backend_for(x: Tensor) -> ModuleType:
    """The module of kernels for ``x``."""
    name = _MODULE[name_for(x)]
    return sys.modules.get(name) or importlib.import_module(name)  # asked for several times in each estimate


def _known(name: str | None, owner: str) -> str | None:
    if name is not None and name not in BACKENDS:
        hint = did_you_mean(str(name), BACKENDS)
        raise InputError(f"{owner} is {name!r}, expected one of {', '.join(BACKENDS)}.{hint}")
    return name


@functools.cache
def _installed(name: str) -> bool:
    """Whether a backend's compiler can be imported; looked up once, for it searches every folder of the path."""
    return name == "torch" or importlib.util.find_spec(name) is not None


def _interpreted() -> bool:
    """Triton runs its kernels in Python, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _works(name: str) -> bool:
    """Whether a backend compiles; asked once in a process, and answered with a warning if it does not."""
    try:
        module = importlib.import_module(_MODULE[name])
        if hasattr(module, "probe"):
            module.probe()
    except Exception as error:
        warnings.warn(
            f"rl_estimators: the backend {name!r} cannot be used here, torch's kernels are used: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
