"""verl's policy-loss configuration with room for the options of ours.

verl builds ``actor_rollout_ref.actor.policy_loss`` into the dataclass that its ``_target_`` names, in the driver and
in every actor worker, and that dataclass refuses unknown keys. :func:`rl_estimators.verl.settings.apply` names this one.
"""

from dataclasses import dataclass, field
from typing import Any

from verl.workers.config import PolicyLossConfig as VerlPolicyLossConfig

__all__ = ["PolicyLossConfig"]


@dataclass
class PolicyLossConfig(VerlPolicyLossConfig):
    """verl's own fields, and ``options``: what ``rl_estimators.policy_loss`` holds beside the name."""

    options: dict[str, Any] = field(default_factory=dict)
