"""An estimator of your own in TRL: python examples/trl/own_estimator.py, after python examples/trl/prepare.py.

What an estimator needs is read from its parameters: with `index` it is told which completions share a prompt, with
`values` it gets a critic, with `reward_baselines` a greedy completion per prompt.
"""

from pathlib import Path
from typing import Any

from datasets import load_dataset
from reinforce_pp import MADE, digits_in_place  # beside this file
from torch import Tensor, where

import rl_estimators
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer


@rl_estimators.register_adv_est("better_than_median")
def better_than_median(
    token_level_rewards: Tensor, response_mask: Tensor, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """1 for each token of a completion that beats the batch's median by ``margin``, -1 for the others."""
    valid = response_mask.bool()
    scores = token_level_rewards.where(valid, 0).sum(-1, keepdim=True)
    sign = where(scores > scores.median() + margin, 1.0, -1.0)
    advantages = sign.where(valid, 0)
    return advantages, advantages


class MedianTrainer(EstimatorTrainer):
    adv_estimator = "better_than_median"


def main(made: Path = MADE, **more: Any) -> MedianTrainer:
    config = EstimatorConfig(
        output_dir=str(made / "own_estimator"),
        adv_estimator_kwargs={"margin": 0.05},
        num_generations=1,
        max_completion_length=6,
        per_device_train_batch_size=128,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_steps=more.pop("max_steps", 40),
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **more,
    )
    data = load_dataset(str(made / "data"), split="train")
    trainer = MedianTrainer(str(made / "model"), digits_in_place, config, data)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
