"""PPO in TRL: a critic, GAE, and the clipped surrogate.

Source: Schulman et al., Proximal Policy Optimization Algorithms (https://arxiv.org/abs/1707.06347); for language models
Ziegler et al., Fine-Tuning Language Models from Human Preferences, section 2 (https://arxiv.org/abs/1909.08593), whose
code and TRL's PPOTrainer until 1.12 have these defaults.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl_estimators.trl.config import EstimatorConfig
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["PPOConfig", "PPOTrainer"]


@dataclass
class PPOConfig(EstimatorConfig):
    r"""PPO's defaults: one completion a prompt, four passes over a batch, KL divergence in the reward.

    gamma 1, lambda .95, clip ranges .2, beta .05, as TRL's PPO had them. Its vf_coef .1 weighed the value loss in a sum
    with the policy's: take it with ``critic="shared"``. A separate critic has an optimizer of its own, which a factor
    reaches only by way of gradient clipping, so the default is 1.
    """

    num_generations: int | None = 1
    num_iterations: int = 4
    gamma: float | None = 1.0
    lam: float | None = 0.95
    beta: float = 0.05
    kl_in_reward: bool = True
    cliprange_value: float | None = 0.2


class PPOTrainer(EstimatorTrainer):
    """The one thing that differs from GRPO: a critic says what to expect before each token, so each has its own credit."""

    adv_estimator: ClassVar[str] = "gae"
    config_class: ClassVar[type[EstimatorConfig]] = PPOConfig
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
    }
