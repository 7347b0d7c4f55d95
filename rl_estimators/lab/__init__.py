"""A laboratory: a language so small that every response can be written down.

Whether an advantage estimator gives the right gradient cannot be seen on a language model, where the truth is
out of reach. Here it is known to the last digit, so that bias and variance are numbers, not opinions.

    >>> from rl_estimators.lab import LanguageMDP, measure
    >>> found = measure("remax", LanguageMDP(seed=0))
    >>> round(found.bias, 10), found.exact
    (0.0, True)
"""

from rl_estimators.lab.mdp import LanguageMDP
from rl_estimators.lab.measuring import Measurement, measure

__all__ = ["LanguageMDP", "Measurement", "measure"]
