"""The batch that verl is estimating advantages for.

verl's ``compute_advantage`` holds the whole batch and hands a registered estimator a few columns of it. The hook
`verl_inputs` keeps the batch at hand for the length of that call, so that an estimator gets whatever its
signature asks for.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rl_estimators.fields import FIELDS

__all__ = ["estimating", "inputs"]

_batch: ContextVar[Any] = ContextVar("rl_estimators_verl_batch", default=None)


@contextmanager
def estimating(data: Any) -> Iterator[None]:
    """Make ``data``, verl's ``DataProto``, the batch that :func:`inputs` reads."""
    token = _batch.set(data)
    try:
        yield
    finally:
        _batch.reset(token)


def inputs() -> Mapping[str, Any]:
    """What the batch holds of our vocabulary; nothing outside of ``compute_advantage``."""
    data = _batch.get()
    if data is None:
        return {}
    found = {name: data.batch[name] for name in FIELDS if name in data.batch}
    return {**found, "batch": data.batch, "non_tensor_batch": data.non_tensor_batch}
