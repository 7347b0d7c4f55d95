"""What our estimators count in a training step, kept until verl collects that step's metrics.

verl's estimators return tensors only. The hook `verl_metrics` in ``patches/`` adds what is kept here to
what verl's ``compute_data_metrics`` returns, later in the same step and process. Where the hook is not in force
nobody would collect them, and nothing is kept.
"""

from collections.abc import Mapping

from torch import Tensor

from rl_estimators import patching

__all__ = ["add", "drain"]

_PREFIX = "rl_estimators/"
_kept: dict[str, float] = {}


def add(metrics: Mapping[str, Tensor]) -> None:
    """Keep ``metrics``; numbers of one name add up."""
    if not patching.in_force("verl_metrics"):
        _kept.clear()  # of a time when it was
        return
    for name, number in metrics.items():
        _kept[_PREFIX + name] = _kept.get(_PREFIX + name, 0.0) + float(number)


def drain() -> dict[str, float]:
    """Hand out what was kept since the last call."""
    metrics = dict(_kept)
    _kept.clear()
    return metrics
