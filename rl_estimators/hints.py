"""The "did you mean" at the end of an error message."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]

_LONGEST = 200  # characters: no name that is known is near a longer word, and to compare them would take long


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """`` Did you mean 'gae'?`` with a leading space, or nothing when nothing is ``alike``, 1 being equal but for case."""
    if len(word) > _LONGEST:
        return ""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=alike)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""
