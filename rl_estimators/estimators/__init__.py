"""Advantage estimators, one per file. Importing this package registers them.

The policy gradient weighs each token's log-probability by how good the token was. Weighing by the raw
return has two flaws, and each estimator answers one or both:

- Absolute returns (`reinforce`) have a high variance. A baseline that does not depend on the token takes most of
  it away: the batch's mean (`reinforce_pp`), the group's (`grpo`, `rloo`, `reinforce_pp_baseline`, `opo`, `gpg`,
  `maxrl`, `gdpo`, `grpo_passk`), the greedy response's reward (`remax`), a critic's value (`mc`).
- One return for a whole response is coarse credit. A critic asked at every token refines it: `td` trusts the critic
  after one step, `k_step_td` after k, and `gae` mixes all of them, trading the variance of Monte Carlo (lambda 1)
  against the bias of the critic (lambda 0); `decoupled_gae`, `length_adaptive_gae` and `turn_gae` are its relatives.
"""

from rl_estimators.estimators.decoupled_gae import decoupled_gae
from rl_estimators.estimators.gae import gae
from rl_estimators.estimators.gdpo import gdpo
from rl_estimators.estimators.gpg import gpg
from rl_estimators.estimators.grpo import grpo
from rl_estimators.estimators.grpo_passk import grpo_passk
from rl_estimators.estimators.k_step_td import k_step_td
from rl_estimators.estimators.length_adaptive_gae import length_adaptive_gae
from rl_estimators.estimators.maxrl import maxrl
from rl_estimators.estimators.mc import mc
from rl_estimators.estimators.opo import opo
from rl_estimators.estimators.reinforce import reinforce
from rl_estimators.estimators.reinforce_pp import reinforce_pp
from rl_estimators.estimators.reinforce_pp_baseline import reinforce_pp_baseline
from rl_estimators.estimators.remax import remax
from rl_estimators.estimators.rloo import rloo
from rl_estimators.estimators.td import td
from rl_estimators.estimators.turn_gae import turn_gae

__all__ = [
    "decoupled_gae",
    "gae",
    "gdpo",
    "gpg",
    "grpo",
    "grpo_passk",
    "k_step_td",
    "length_adaptive_gae",
    "maxrl",
    "mc",
    "opo",
    "reinforce",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "td",
    "turn_gae",
]
