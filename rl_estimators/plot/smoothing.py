"""An exponential moving average that begins without a lag."""

from typing import Any

import numpy as np

__all__ = ["smooth"]


def smooth(values: "np.ndarray[Any, Any]", weight: float) -> "np.ndarray[Any, Any]":
    r"""The average of all values so far, each weighing ``weight`` times as much as the next.

    .. math::
        s_t = \frac{\sum_{i \le t} w^{t-i} x_i}{\sum_{i \le t} w^{t-i}}

    The steps between two values do not count. A gap stays one, and neither counts nor weighs.

    Args:
        values: ``(N,)``; what is not finite is a gap.
        weight: ``w`` in ``[0, 1)``; with 0 the values come back.
    """
    total = weights = 0.0
    averages = np.full(len(values), np.nan)
    for place in np.flatnonzero(np.isfinite(values)):
        total, weights = weight * total + float(values[place]), weight * weights + 1.0
        averages[place] = total / weights
    return averages
