"""GRPO in TRL, by our estimator.

Source: Shao et al., DeepSeekMath, section 4.1 (https://arxiv.org/abs/2402.03300).
"""

from typing import ClassVar

from rl_estimators.trl.config import EstimatorConfig
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["GRPOConfig", "GRPOTrainer"]


class GRPOConfig(EstimatorConfig):
    """TRL's own defaults."""


class GRPOTrainer(EstimatorTrainer):
    """The one thing that differs from ``trl.GRPOTrainer``: the arithmetic of the advantage.

    Equal rewards give exactly 0, 1e-6 is added to the deviation where TRL adds 1e-4, and a completion that
    ``mask_truncated_completions`` takes out of the loss is left out of its group's mean as well. With
    ``adv_estimator_kwargs={"compat": "trl"}`` nothing differs: every number is TRL's to the bit.
    """

    adv_estimator: ClassVar[str] = "grpo"
    config_class: ClassVar[type[EstimatorConfig]] = GRPOConfig
    _name = "GRPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "id": "2402.03300",
    }
