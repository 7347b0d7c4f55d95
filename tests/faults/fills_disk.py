"""A run whose disk is full at its second checkpoint: ``python fills_disk.py MODEL DISK KEPT``.

DISK is the small disk that the run writes to. What lies there when the run has ended is copied to KEPT, since the disk is
gone with this process; the last line printed is the error.
"""

import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trl"))
import critics
import toy
from killed import SETTINGS as SAVING


def main():
    torch.set_num_threads(1)
    model, disk, kept = sys.argv[1:]
    try:
        toy.train(critics.PPOTrainer, critics.config(disk, **SAVING), Path(model))
    except Exception as error:
        shutil.copytree(disk, kept)
        said = " ".join(str(error).split())
        sys.stdout.write(f"{type(error).__name__} {said}\n")


if __name__ == "__main__":
    main()
