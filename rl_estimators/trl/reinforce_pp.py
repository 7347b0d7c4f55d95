"""REINFORCE++ in TRL: one completion per prompt, and the batch's mean and spread in place of a critic.

Source: Hu et al., REINFORCE++ (https://arxiv.org/abs/2501.03262).
"""

from dataclasses import dataclass
from typing import ClassVar

from rl_estimators.trl.config import EstimatorConfig
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["ReinforcePPConfig", "ReinforcePPTrainer"]


@dataclass
class ReinforcePPConfig(EstimatorConfig):
    """One completion a prompt, k1 KL divergence in the reward."""

    num_generations: int | None = 1
    beta: float = 0.01
    kl_in_reward: bool = True
    kl_penalty: str = "k1"


class ReinforcePPTrainer(EstimatorTrainer):
    """The one thing that differs from GRPO: returns are normalised over the whole batch, so one completion will do."""

    adv_estimator: ClassVar[str] = "reinforce_pp"
    config_class: ClassVar[type[EstimatorConfig]] = ReinforcePPConfig
    _name = "REINFORCE++"
    _paper: ClassVar[dict[str, str]] = {
        "title": "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
        "id": "2501.03262",
    }
