"""Several rewards of a response, made one."""

import math
from collections.abc import Mapping

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean

__all__ = ["Weights"]


class Weights:
    r"""What each of several rewards counts for.

    .. math:: r = \sum_k w_k r_k

    over the rewards that are numbers, as TRL has it: a reward function that does not apply gives NaN. A response for which
    none applies has the reward NaN.

    Args:
        words: ``0.5,1`` in the order of the file, or ``accuracy=1,format=0.5`` by name, which leaves out the others;
            None: 1 each.

    Raises:
        InputError: a weight is no finite number, or some have names and some have none.
    """

    def __init__(self, words: str | None = None) -> None:
        self.given = words is not None
        parts = [part.strip() for part in words.split(",")] if words is not None else []
        self._named = "=" in parts[0] if parts else False
        if any(("=" in part) is not self._named for part in parts):
            raise InputError(f"--reward-weights is {words!r}, expected all weights with a name, or none")
        self._weights: dict[str, float] = {}
        for at, part in enumerate(parts):
            name, _, value = part.rpartition("=")
            self._weights[name.strip() or str(at)] = _weight(value)
        if len(self._weights) != len(parts):
            raise InputError(f"--reward-weights is {words!r}, which names a reward twice")

    def names(self) -> list[str]:
        """The rewards that are named; empty where none is."""
        return [*self._weights] if self._named else []

    def of(self, names: list[str]) -> dict[str, float]:
        """The weight of each reward that counts.

        Args:
            names: The rewards that there are, in order.

        Raises:
            InputError: a name is not among them, or there are as many weights as rewards are not.
        """
        if not self.given:
            return dict.fromkeys(names, 1.0)
        if self._named:
            for name in self._weights:
                if name not in names:
                    raise InputError(
                        f"there is no reward {name!r}.{did_you_mean(name, names)} There are: {', '.join(names) or 'none'}"
                    )
            return self._weights
        if len(self._weights) != len(names):
            raise InputError(
                f"--reward-weights has {len(self._weights)} numbers, but there are {len(names)} rewards: "
                f"{', '.join(names) or 'none'}"
            )
        return dict(zip(names, self._weights.values(), strict=True))

    def reward(self, components: Mapping[str, float]) -> float:
        """The one reward of a response, see the class."""
        weights = self.of([*components])
        numbers = [weight * components[name] for name, weight in weights.items()]
        there = [number for number in numbers if not math.isnan(number)]
        return sum(there) if there else math.nan


def _weight(value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InputError(f"--reward-weights has {value.strip()!r}, expected a finite number")
    return weight
