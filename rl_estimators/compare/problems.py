"""What could not be read: where it is, and why."""

from rl_estimators.errors import InputError

__all__ = ["Problems"]

_SHOWN = 20
_KEPT = 1000  # a file of another kind may be all problems


class Problems:
    """Lines and files that were skipped.

    Attributes:
        strict: Refuse at the first instead of skipping it.
        count: How many there are.
        reasons: The first thousand, each with its place.
        notes: What else was left out, for a good reason: where, by the reason.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.count = 0
        self.reasons: list[str] = []
        self.notes: dict[str, list[str]] = {}

    def skip(self, place: str, reason: str) -> None:
        """Note that ``place`` is left out.

        Raises:
            InputError: where nothing may be left out.
        """
        if self.strict:
            raise InputError(f"{place}: {reason}. Nothing was written; without --strict it is skipped")
        self.count += 1
        if len(self.reasons) < _KEPT:
            self.reasons.append(f"{place}: {reason}")

    def note(self, place: str, reason: str) -> None:
        """Say what was left out though nothing is wrong with it."""
        self.notes.setdefault(reason, []).append(place)

    def lines(self) -> list[str]:
        """For people: the first of them, and how many there are."""
        shown = [f"skipped {reason}" for reason in self.reasons[:_SHOWN]]
        if self.count > len(shown):
            shown.append(f"... and {self.count - len(shown):,} more")
        if self.count:
            shown.append(f"{self.count:,} skipped in all; --strict refuses them")
        noted = [f"{_places(places)}: {reason}" for reason, places in self.notes.items()]
        return [*noted, *shown]


def _places(places: list[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1:,} more"
