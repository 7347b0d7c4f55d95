"""A run that is killed in the middle of its second save: ``python killed.py MODEL FOLDER WHERE``.

WHERE is the method after which the process dies: ``critic`` (the critic is half written), ``model`` (critic and policy
are there, the optimizer is not), ``optimizer`` (all but the Trainer's own state).
"""

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import critics
import toy

from rl_estimators.trl.critic import checkpoint

PLACES = {
    "critic": (checkpoint, "save_model"),
    "model": (critics.PPOTrainer, "save_model"),
    "optimizer": (critics.PPOTrainer, "_save_optimizer_and_scheduler"),
}
SETTINGS = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "lr_scheduler_type": "linear",
}


def main():
    torch.set_num_threads(1)
    model, folder, where = sys.argv[1:]
    owner, name = PLACES[where]
    whole, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        whole(*args, **kwargs)
        calls.append(name)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)
    toy.train(critics.PPOTrainer, critics.config(folder, **SETTINGS), model)


if __name__ == "__main__":
    main()
