"""REINFORCE++ in TRL: python examples/trl/reinforce_pp.py, after python examples/trl/prepare.py.

One completion per prompt and no critic: the whole batch is the baseline.
"""

from pathlib import Path
from typing import Any

from datasets import load_dataset

from rl_estimators.trl import ReinforcePPConfig, ReinforcePPTrainer

MADE = Path(".smoke/trl")  # by prepare.py: put your model and your data here


def digits_in_place(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """The reward: the share of digits at the right place, halved if the length is wrong."""
    rewards = []
    for given, wanted in zip(completions, answer, strict=True):
        share = sum(a == b for a, b in zip(given, wanted, strict=False)) / len(wanted)
        rewards.append(share if len(given) == len(wanted) else share / 2)
    return rewards


def main(made: Path = MADE, **more: Any) -> ReinforcePPTrainer:
    config = ReinforcePPConfig(
        output_dir=str(made / "reinforce_pp"),
        beta=0.01,  # KL divergence, charged to the rewards token by token
        max_completion_length=6,
        per_device_train_batch_size=128,  # completions per step
        learning_rate=1e-3,  # for a tiny model; 1e-6 to 1e-5 for a pretrained one
        lr_scheduler_type="constant",
        max_steps=more.pop("max_steps", 40),
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        use_cpu=True,  # take these three out where there is a GPU
        bf16=False,
        gradient_checkpointing=False,
        **more,
    )
    trainer = ReinforcePPTrainer(
        model=str(made / "model"),
        reward_funcs=digits_in_place,
        args=config,
        train_dataset=load_dataset(str(made / "data"), split="train"),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
