"""Policy losses, one per file: they turn advantages into something to minimise. Importing registers them.

How a loss per token becomes one number is `loss_agg_mode`. As functions and by :func:`rl_estimators.policy_loss` the losses
have their papers' own, the first in its row, unless it is set:

======================================  ======================================================
`ppo_clip`, `importance_sampling`       ``token-mean``; GRPO ``seq-mean-token-mean``
`cispo`, `gpg`, `clip_cov`, `kl_cov`    ``token-mean``
`gspo`, `gmpo`, `sapo`                  ``seq-mean-token-mean``
`reinforce`                             ``seq-mean-token-sum``
======================================  ======================================================

In verl (``actor.loss_agg_mode``) and TRL it is ``token-mean`` for all unless it is set. There set it to what stands in
the last two rows for the losses named: with ``token-mean`` long responses weigh more than in their papers.

Each is computed with its gradient in one reading of the batch, see :mod:`rl_estimators.backends.losses`, and can be
differentiated once: with ``create_graph=True`` the backward pass raises an InputError. `ppo_clip` with ``fused=False`` can
be differentiated as often as you like.
"""

from rl_estimators.policy_losses.cispo import cispo
from rl_estimators.policy_losses.clip_cov import clip_cov
from rl_estimators.policy_losses.gmpo import gmpo
from rl_estimators.policy_losses.gpg import gpg
from rl_estimators.policy_losses.gspo import gspo
from rl_estimators.policy_losses.importance_sampling import importance_sampling
from rl_estimators.policy_losses.kl_cov import kl_cov
from rl_estimators.policy_losses.ppo_clip import ppo_clip
from rl_estimators.policy_losses.reinforce import reinforce
from rl_estimators.policy_losses.sapo import sapo

__all__ = [
    "cispo",
    "clip_cov",
    "gmpo",
    "gpg",
    "gspo",
    "importance_sampling",
    "kl_cov",
    "ppo_clip",
    "reinforce",
    "sapo",
]
