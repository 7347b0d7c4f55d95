"""Numbers that tell whether an estimate can be trusted, the same in verl's and TRL's logs.

:func:`diagnose` computes them from whatever of a batch is at hand; :data:`DIAGNOSTICS` says of each what it is, what a
bad value means and what to do, and is what ``rl-estimators diagnostics`` prints. The frameworks log them under the
prefix ``rl_estimators/``.
"""

from rl_estimators.diagnostics.batch import diagnose, loggable, measure
from rl_estimators.diagnostics.table import DIAGNOSTICS, PREFIX, Diagnostic

__all__ = ["DIAGNOSTICS", "PREFIX", "Diagnostic", "diagnose", "loggable", "measure"]
