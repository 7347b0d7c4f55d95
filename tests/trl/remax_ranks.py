"""What each process of a ReMax run does; ``test_remax_processes.py`` starts two of it and compares them with one.

python -m torch.distributed.run --nproc_per_node 2 remax_ranks.py MODEL FOLDER
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import toy

from rl_estimators.trl import ReMaxConfig, ReMaxTrainer, greedy

# Completions of all processes together, and groups: with two processes a group straddles them, or is one completion,
# or is so large that one process decodes for the other.
SIZES = {"straddling": (6, 2), "single": (4, 1), "one_group": (6, 6)}
CASES = [(size, together) for size in SIZES for together in (True, False) if together or size != "single"]


def baselines(model, folder, size, together):
    """The estimator's baselines on this process in one step of evaluation and one of training, and what was asked."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    total, generations = SIZES[size]
    asked, found = [], []

    def reward(prompts, completions, **_):
        asked.append(list(prompts))
        return toy.reward(prompts, completions)

    fields = toy.settings(
        folder,
        **{"per_device_train_batch_size": total // world, "per_device_eval_batch_size": total // world},
        **{"num_generations": generations, "max_steps": 1, "learning_rate": 0.0, "beta": 0.0},
        **{"kl_in_reward": False, "greedy_with_samples": together, "eval_strategy": "steps", "eval_steps": 1},
    )
    data = {"train_dataset": toy.rows(24), "eval_dataset": toy.rows(total // generations)}
    trainer = toy.make(ReMaxTrainer, ReMaxConfig(**fields), model, reward_funcs=reward, **data)
    known = greedy.baselines

    def recording(*args):
        found.append(known(*args))
        return found[-1]

    greedy.baselines = recording
    try:
        trainer.train()
    finally:
        greedy.baselines = known
    rows = {"advantages": list(trainer._logs["advantages"]), "prompts": list(trainer._logs["prompt"])}
    return {"baselines": found, "asked": asked, "completions": list(trainer._logs["completion"]), **rows}


def everything(model, folder):
    return {case: baselines(model, folder, *case) for case in CASES}


def main():
    torch.set_num_threads(1)
    model, folder = map(Path, sys.argv[1:])
    found = everything(model, folder)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.save({"world": world, "found": found}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
