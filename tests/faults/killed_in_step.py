"""A run that SIGKILL ends in its fifth step: ``python killed_in_step.py MODEL FOLDER``.

The critic has taken that step and the policy has not: of both, memory alone knew.
"""

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trl"))
import critics
import toy

SETTINGS = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 3,
    "lr_scheduler_type": "linear",
    # 8 micro-batches a generation, 2 a step: the checkpoint of step 3 lies within the first generation
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
}


class Trainer(critics.PPOTrainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 4 and self.accelerator.sync_gradients:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


def main():
    torch.set_num_threads(1)
    model, folder = sys.argv[1:]
    toy.train(Trainer, critics.config(folder, **SETTINGS), Path(model))


if __name__ == "__main__":
    main()
