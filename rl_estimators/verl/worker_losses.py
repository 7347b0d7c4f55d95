"""What our losses in verl's workers share: a function of verl's replaced for the length of a call, sums as metrics.

A worker has one part of a batch at a time. What it can say of :data:`~rl_estimators.diagnostics.DIAGNOSTICS` are sums,
which verl adds up over micro-batches and processes on their way to the trainer, as it does with its losses; there
:func:`rl_estimators.verl.diagnostics.finish` makes numbers of them.
"""

import functools
import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["SUMS", "are_verls", "as_metrics", "losses", "replaced"]

logger = logging.getLogger(__name__)

SUMS = "rl_estimators/sums/"  # verl's trainer joins what it has of several batches by name: "sum", "max" and "min"


def losses() -> ModuleType:
    """The module of the losses that verl's workers call."""
    return importlib.import_module("verl.workers.utils.losses")


def are_verls(workers: Mapping[Any, Any], role: str) -> bool:
    """Whether the worker classes for a role are verl's own; others may train with a loss that they set themselves.

    Args:
        workers: A trainer's ``role_worker_mapping``: Ray's actor classes by verl's ``Role``.
        role: How the role's name begins, ``"Actor"`` or ``"Critic"``.
    """
    found = [worker for key, worker in workers.items() if key.name.startswith(role)]
    strangers = [cls for cls in map(_class, found) if cls.__module__.partition(".")[0] != "verl"]
    for cls in strangers:
        logger.warning(
            "rl_estimators: %s.%s may have a loss of its own, so no diagnostics of its updates",
            cls.__module__,
            cls.__qualname__,
        )
    return not strangers


def _class(worker: Any) -> type:
    """The class that was given to ``ray.remote``, whose own is a subclass of it."""
    made = getattr(worker, "__ray_metadata__", None)
    found: type = worker if made is None else made.modified_class.__mro__[1]
    return found


@contextmanager
def replaced(module: ModuleType, name: str, replacement: Any) -> Iterator[None]:
    """Have ``module`` find ``replacement`` under ``name``."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


def as_metrics(sums: Mapping[str, Tensor], owner: str) -> dict[str, Any]:
    """Sums, and extremes, as metrics that verl joins as such; one copy from the device.

    Args:
        sums: 0-dim tensors; none if ``owner`` did not do what it was watched for, which is told once.
        owner: The function of verl's that was watched.
    """
    if not sums:
        _tell(owner)
        return {}
    metric = importlib.import_module("verl.utils.metric").Metric
    numbers = torch.stack(list(sums.values())).tolist()
    joins = {"ratio_min": "min", "ratio_max": "max"}
    return {
        SUMS + name: metric(aggregation=joins.get(name, "sum"), value=number)
        for name, number in zip(sums, numbers, strict=True)
    }


@functools.cache
def _tell(owner: str) -> None:
    """The loss is what it should be, and the numbers about it are missing."""
    logger.warning(
        "rl_estimators: %s does not call its loss as reviewed, so diagnostics of the updates are missing; "
        "+rl_estimators.diagnostics=False goes without",
        owner,
    )
