"""Which training steps are looked at."""

import re

from rl_estimators.errors import InputError

__all__ = ["Steps"]

_RANGE = re.compile(r"(\d+)?(-)?(\d+)?")


class Steps:
    """The steps that ``--steps`` names.

    Args:
        words: ``3``, ``1,5``, ``10-20``, ``10-`` (and all after), ``-20`` (and all before), or several of them; None:
            all.

    Raises:
        InputError: it is none of these.
    """

    def __init__(self, words: str | None = None) -> None:
        self.words = words
        self._ranges: list[tuple[int, float]] = []
        for part in words.split(",") if words is not None else []:
            found = _RANGE.fullmatch(part.strip())
            if not found or not (found[1] or found[3]):
                raise InputError(f"--steps is {words!r}, expected steps like 1,5,10-20")
            low = int(found[1]) if found[1] else 0
            self._ranges.append((low, int(found[3]) if found[3] else float("inf") if found[2] else low))

    def __contains__(self, step: int | None) -> bool:
        """Whether a response of this step is looked at; one without a step only if all are."""
        if not self._ranges:
            return True
        return step is not None and any(low <= step <= high for low, high in self._ranges)
