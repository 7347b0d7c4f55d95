"""Advantage estimators, one per file. Importing this package registers them.

The policy gradient weighs each token's log-probability by how good the token was. Weighing by the raw
return has two flaws, and each estimator answers one or both:

- Absolute returns have a high variance. A baseline that does not depend on the token takes most of it away:
  the group's mean (`grpo`), the batch's mean (`reinforce_pp`), the greedy response's reward (`remax`), a
  critic's value (`gae`).
- One return for a whole response is coarse credit. `gae` asks the critic at every token, and trades the
  variance of Monte Carlo (lambda 1) against the bias of the critic (lambda 0).
"""

from rl_estimators.estimators.gae import gae
from rl_estimators.estimators.grpo import grpo
from rl_estimators.estimators.reinforce_pp import reinforce_pp
from rl_estimators.estimators.remax import remax

__all__ = ["gae", "grpo", "reinforce_pp", "remax"]
