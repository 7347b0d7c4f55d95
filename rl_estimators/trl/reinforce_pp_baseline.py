"""REINFORCE++ with a group baseline in TRL.

Source: Hu et al., REINFORCE++, version 9, section 3.2 (https://arxiv.org/abs/2501.03262).
"""

from dataclasses import dataclass
from typing import ClassVar

from rl_estimators.trl.config import EstimatorConfig
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["ReinforcePPBaselineConfig", "ReinforcePPBaselineTrainer"]


@dataclass
class ReinforcePPBaselineConfig(EstimatorConfig):
    """Several completions a prompt, KL divergence (k3) in the loss."""

    beta: float = 0.01


class ReinforcePPBaselineTrainer(EstimatorTrainer):
    """The one thing that differs from GRPO: the batch's spread is the scale, not the group's."""

    adv_estimator: ClassVar[str] = "reinforce_pp_baseline"
    config_class: ClassVar[type[EstimatorConfig]] = ReinforcePPBaselineConfig
    _name = "REINFORCE++-baseline"
    _paper: ClassVar[dict[str, str]] = {
        "title": "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
        "id": "2501.03262",
    }
