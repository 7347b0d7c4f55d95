"""PPO with a critic in TRL: python examples/trl/ppo.py, after python examples/trl/prepare.py.

The critic is made from the policy's own weights, learns beside it, and is saved with it, in the folder critic.
"""

from pathlib import Path
from typing import Any

from datasets import load_dataset

from rl_estimators.trl import PPOConfig, PPOTrainer

MADE = Path(".smoke/trl")  # by prepare.py: put your model and your data here


def digits_in_place(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """The reward: the share of digits at the right place, halved if the length is wrong."""
    rewards = []
    for given, wanted in zip(completions, answer, strict=True):
        share = sum(a == b for a, b in zip(given, wanted, strict=False)) / len(wanted)
        rewards.append(share if len(given) == len(wanted) else share / 2)
    return rewards


def main(made: Path = MADE, **more: Any) -> PPOTrainer:
    config = PPOConfig(
        output_dir=str(made / "ppo"),
        num_iterations=1,  # passes over a batch; PPO's default is 4
        lam=0.95,  # 0: trust the critic, 1: trust what the completion earned
        beta=0.01,  # KL divergence, charged to the rewards token by token
        critic_learning_rate=3e-3,
        vf_coef=1.0,
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
    trainer = PPOTrainer(
        model=str(made / "model"),
        reward_funcs=digits_in_place,
        args=config,
        train_dataset=load_dataset(str(made / "data"), split="train"),
        # value_model=..., a critic of your own; token_reward_funcs=..., rewards for single tokens
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
