"""Policy losses, one per file: they turn advantages into something to minimise. Importing registers them.

How a loss per token becomes one number is `loss_agg_mode`. Called by name, and in verl (``actor.loss_agg_mode``), it is
``token-mean`` unless it is set, whatever the paper does. The papers' own:

======================================  ======================================================
`ppo_clip`, `importance_sampling`       ``token-mean``; GRPO ``seq-mean-token-mean``
`cispo`, `gpg`, `clip_cov`, `kl_cov`    ``token-mean``
`gspo`, `gmpo`, `sapo`                  ``seq-mean-token-mean``
`reinforce`                             ``seq-mean-token-sum``
======================================  ======================================================

For the losses of the last two rows set ``loss_agg_mode`` to what stands there: with ``token-mean`` long responses weigh
more than in their papers.
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
