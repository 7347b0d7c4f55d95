"""How upstream's numbers, ours like them, the definition's and ours by default are set against each other."""

import numpy as np

TOLERANCE = 1e-4  # relative to the largest of upstream's numbers, or 1: fp32 sums of numbers of about 1000


def row_of(theirs, alike, wanted, ours):
    """Two differences, and the numbers where upstream is furthest from the definition; if it is nowhere, from ``alike``.

    All are (2, number of valid tokens).

    Args:
        theirs: Upstream's advantages and returns.
        alike: Ours with ``compat``.
        wanted: The definition's.
        ours: Ours by default.
    """
    if not theirs.size:
        return {"difference": 0.0, "from_definition": 0.0, "at": 0}
    finite = theirs[np.isfinite(theirs)]
    scale = max(1.0, np.abs(finite).max(initial=0.0))
    off, unlike = _apart(theirs, wanted), _apart(theirs, alike)
    shown = off if off.max() > TOLERANCE * scale else unlike
    worst = np.unravel_index(np.argmax(shown), off.shape)
    found = {
        "upstream": theirs[worst],
        "definition": wanted[worst],
        "ours": ours[worst],
        "compat": alike[worst],
    }
    return {
        "difference": float(unlike.max() / scale),
        "from_definition": float(off.max() / scale),
        "numbers": {key: float(number) for key, number in found.items()},
        "at": int(worst[1]),
    }


def _apart(one, other):
    """The absolute difference, infinite where one of the two is no number."""
    with np.errstate(invalid="ignore"):
        off = np.abs(one - other)
    return np.where(np.isnan(off), np.inf, off)
