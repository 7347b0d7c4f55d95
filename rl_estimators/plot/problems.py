"""What is wrong with a log: told, never lost."""

from collections import Counter
from pathlib import Path

from rl_estimators.errors import InputError

__all__ = ["Problems", "printable"]

_TOLD = 5  # of a file; a log of the wrong kind would fill the screen


class Problems:
    """Gathers what is to be told of the logs; with ``strict`` the first part that would be skipped is an error."""

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._notes: list[str] = []
        self._skipped: Counter[Path] = Counter()

    def tell(self, note: str) -> None:
        """Note what is no fault of a log."""
        self._notes.append(note)

    def skip(self, path: Path, place: str, reason: str) -> None:
        """Note that a part of a log cannot be read.

        Args:
            path: The log.
            place: Which part: ``line 3``.
            reason: What is wrong with it.

        Raises:
            InputError: ``strict`` is on.
        """
        if self._strict:
            raise InputError(f"{path}: {place}: {reason}; without --strict it would be skipped")
        self._skipped[path] += 1
        if self._skipped[path] <= _TOLD:
            self._notes.append(f"{path}: {place}: {reason}; skipped")

    def notes(self) -> list[str]:
        """Everything that was noted, and how much more of each file was skipped than is written there."""
        more = [
            f"{path}: {count - _TOLD} more skipped, {count} in all"
            for path, count in self._skipped.items()
            if count > _TOLD
        ]
        return [*self._notes, *more]


def printable(text: str) -> str:
    """A name from a log with nothing in it that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
