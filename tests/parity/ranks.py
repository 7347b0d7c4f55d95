"""What each of two processes does; ``test_two_processes.py`` starts it and compares what it leaves behind.

python -m torch.distributed.run --nproc_per_node 2 ranks.py MODEL FOLDER
"""

import sys
import warnings
from pathlib import Path

import torch

from parity import recorded, trl_side, verl_side
from rl_estimators import list_adv_est, list_policy_loss, list_value_loss

MODE = "seq-mean-token-mean"
CHARGED = ("gae", "grpo", "remax", "turn_gae")  # with the KL divergence in the reward


def everywhere(loss, gradient):
    """What data-parallel training makes of a loss and a gradient on each process: their average."""
    both = torch.cat([torch.tensor([loss]), gradient.flatten()])
    torch.distributed.all_reduce(both)
    return both / torch.distributed.get_world_size()


def losses(model, folder, rank):
    """The policy losses in both frameworks, each process with its half of the rows."""
    share = recorded.ROWS // 2
    rows = tuple(range(rank * share, (rank + 1) * share))
    found = {}
    for name in list_policy_loss():
        found["trl", name] = everywhere(*trl_side.policy_loss(model, folder, name, MODE, world=2))
        found["verl", name] = everywhere(*verl_side.policy_loss(name, MODE, parts=(rows,), dp_size=2))
    for name in list_value_loss():
        loss, gradient = trl_side.value_loss(
            model, folder, name, MODE, world=2
        )  # averaged by DDP, summed by TokenMeans
        found["trl", name] = torch.cat([torch.tensor([loss]), gradient.flatten()])
        found["verl", name] = everywhere(*verl_side.value_loss(name, MODE, parts=(rows,), dp_size=2))
    return found


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, folder = map(Path, sys.argv[1:])
    found = {"advantages": {}}
    for name in list_adv_est():
        found["advantages"][name, None] = trl_side.advantages(model, folder, name, world=2)[:2]
    for name in CHARGED:
        found["advantages"][name, 0.1] = trl_side.advantages(model, folder, name, world=2, kl=0.1)[:2]
    rank = torch.distributed.get_rank()
    found |= {"world": torch.distributed.get_world_size(), "losses": losses(model, folder, rank)}
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
