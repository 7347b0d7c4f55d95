"""Trainers for TRL: ``trl.GRPOTrainer`` with any advantage estimator, loss and critic.

Needs the extra ``trl`` (``pip install 'rl-estimators[trl]'``).
"""

from rl_estimators.trl.config import EstimatorConfig
from rl_estimators.trl.grpo import GRPOConfig, GRPOTrainer
from rl_estimators.trl.ppo import PPOConfig, PPOTrainer
from rl_estimators.trl.reinforce_pp import ReinforcePPConfig, ReinforcePPTrainer
from rl_estimators.trl.reinforce_pp_baseline import ReinforcePPBaselineConfig, ReinforcePPBaselineTrainer
from rl_estimators.trl.remax import ReMaxConfig, ReMaxTrainer
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = [
    "EstimatorConfig",
    "EstimatorTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "ReMaxConfig",
    "ReMaxTrainer",
    "ReinforcePPBaselineConfig",
    "ReinforcePPBaselineTrainer",
    "ReinforcePPConfig",
    "ReinforcePPTrainer",
]
