"""Policy losses, one per file: they turn advantages into something to minimise. Importing registers them."""

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
