"""Counts that an estimator reports on the side: what it left out, what had to be moved.

Estimators return two tensors, as verl's do, so there is no room for numbers in what they return. They
call :func:`count` instead; whoever wants the numbers wraps the call in :func:`collect_metrics`. The framework
adapters do, and log them under the prefix ``rl_estimators/``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

__all__ = ["collect_metrics", "count"]

_sink: ContextVar[dict[str, Tensor] | None] = ContextVar("rl_estimators_metrics", default=None)


@contextmanager
def collect_metrics() -> Iterator[dict[str, Tensor]]:
    """Yield a dict that fills with 0-dim tensors while estimators run; ``float()`` them when you log.

    Example:
        >>> with collect_metrics() as metrics:
        ...     advantages, returns = estimate("grpo", ...)
        >>> metrics["excluded_responses"]
        tensor(0)
    """
    metrics: dict[str, Tensor] = {}
    token = _sink.set(metrics)
    try:
        yield metrics
    finally:
        _sink.reset(token)


def count(name: str, number: Callable[[], Tensor]) -> None:
    """Add ``number()`` to the metric ``name``; nothing is computed when nobody collects."""
    metrics = _sink.get()
    if metrics is not None:
        metrics[name] = metrics[name] + number() if name in metrics else number()
