"""``rl-estimators train``: train with TRL; ``--help`` has every setting."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rl_estimators.errors import EstimatorError

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Train; its arguments are TRL's, which are not known before TRL is imported."""
    if find_spec("trl") is None:
        print("rl-estimators train: TRL is not installed: pip install 'rl-estimators[trl]'", file=sys.stderr)
        return 2
    from rl_estimators.trl import train

    try:
        given, trainer = train.prepare(arguments)
    except EstimatorError as error:
        print(f"rl-estimators train: {error}", file=sys.stderr)
        return 2
    train.run(given, trainer)  # what goes wrong from here on shows where
    return 0
