"""The batch that verl is estimating advantages for.

verl's ``compute_advantage`` holds the whole batch and hands a registered estimator a few columns of it. The hook
`verl_inputs` keeps the batch at hand for the length of that call, so that an estimator gets whatever its
signature asks for.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from rl_estimators.fields import FIELDS

__all__ = ["estimating", "inputs", "settings"]

_batch: ContextVar[Any] = ContextVar("rl_estimators_verl_batch", default=None)
_settings: ContextVar[Mapping[str, Any]] = ContextVar(
    "rl_estimators_verl_settings", default=MappingProxyType({})
)


@contextmanager
def estimating(data: Any, **settings: Any) -> Iterator[None]:
    """Make ``data``, verl's ``DataProto``, the batch that :func:`inputs` reads.

    Args:
        data: The batch.
        **settings: The other arguments of ``compute_advantage``, as far as they were given.
    """
    token, other = _batch.set(data), _settings.set(settings)
    try:
        yield
    finally:
        _batch.reset(token)
        _settings.reset(other)


def settings() -> Mapping[str, Any]:
    """What ``compute_advantage`` was called with beside the batch, e.g. ``gamma``; nothing outside of it."""
    return _settings.get()


def inputs() -> Mapping[str, Any]:
    """What the batch holds of our vocabulary; nothing outside of ``compute_advantage``."""
    data = _batch.get()
    if data is None:
        return {}
    found = {name: data.batch[name] for name in FIELDS if name in data.batch}
    return {**found, "batch": data.batch, "non_tensor_batch": data.non_tensor_batch}
