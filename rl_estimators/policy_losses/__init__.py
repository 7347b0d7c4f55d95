"""Policy losses, one per file: they turn advantages into something to minimise. Importing registers them."""

from rl_estimators.policy_losses.ppo_clip import ppo_clip

__all__ = ["ppo_clip"]
