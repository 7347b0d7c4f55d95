"""What could not be read: where it is, and why; told, never lost."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rl_estimators.errors import InputError

__all__ = ["Manner", "Problems"]

_KEPT = 1000  # a file of another kind may be all problems


@dataclass(frozen=True)
class Manner:
    """How a command words its problems, and how many of them it tells.

    Attributes:
        shown: How many are told of each file; of all together where no file is named.
        refused: Stands after place and reason where nothing may be left out.
        skipped: One that is told, by ``place`` and ``reason``.
        more: Of a ``file``, how many ``more`` than are told, of ``count``.
        total: The last line, by ``count``; empty: none.
    """

    shown: int = 20
    refused: str = ". Nothing was written; without --strict it is skipped"
    skipped: str = "skipped {place}: {reason}"
    more: str = "... and {more:,} more"
    total: str = "{count:,} skipped in all; --strict refuses them"


_FIRST_OF_ALL = Manner()


class Problems:
    """Lines and files that were skipped.

    Attributes:
        strict: Refuse at the first instead of skipping it.
        count: How many there are.
        reasons: The first thousand, each with its place.
        notes: What else was left out, for a good reason: where, by the reason.
    """

    def __init__(self, strict: bool = False, manner: Manner = _FIRST_OF_ALL) -> None:
        self.strict = strict
        self.count = 0
        self.reasons: list[str] = []
        self.notes: dict[str, list[str]] = {}
        self._manner = manner
        self._told: list[str] = []
        self._by_file: Counter[Path | None] = Counter()

    def skip(self, place: str, reason: str, file: Path | None = None) -> None:
        """Note that ``place``, of ``file`` if that is given, is left out.

        Raises:
            InputError: where nothing may be left out.
        """
        if file is not None:
            place = f"{file}: {place}"
        if self.strict:
            raise InputError(f"{place}: {reason}{self._manner.refused}")
        self.count += 1
        if len(self.reasons) < _KEPT:
            self.reasons.append(f"{place}: {reason}")
        self._by_file[file] += 1
        if self._by_file[file] <= self._manner.shown:
            self._told.append(self._manner.skipped.format(place=place, reason=reason))

    def tell(self, text: str) -> None:
        """Say what is no fault of a file."""
        self._told.append(text)

    def note(self, place: str, reason: str) -> None:
        """Say what was left out though nothing is wrong with it."""
        self.notes.setdefault(reason, []).append(place)

    def lines(self) -> list[str]:
        """For people: the first of them, and how many there are."""
        noted = [f"{_places(places)}: {reason}" for reason, places in self.notes.items()]
        manner = self._manner
        more = [
            manner.more.format(file=file, more=count - manner.shown, count=count)
            for file, count in self._by_file.items()
            if count > manner.shown
        ]
        total = [manner.total.format(count=self.count)] if self.count and manner.total else []
        return [*noted, *self._told, *more, *total]


def _places(places: list[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1:,} more"
