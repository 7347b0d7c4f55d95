"""Loaded into verl's processes by a test: writes down what goes into `compute_advantage` and what comes out.

Set ``VERL_USE_EXTERNAL_MODULES=recorder`` and ``RLE_TEST_RECORDS`` to a folder; ``RLE_TEST_COLUMNS`` may name
columns of numbers beside the tensors.
"""

import functools
import itertools
import os
from pathlib import Path

import torch

from rl_estimators.imports import when_imported

numbers = itertools.count()


def record(module):
    original = module.compute_advantage

    @functools.wraps(original)
    def compute_advantage(data, adv_estimator, *args, **kwargs):
        result = original(data, adv_estimator, *args, **kwargs)
        batch = {name: result.batch[name].clone() for name in result.batch.keys()}  # noqa: SIM118 (a TensorDict)
        batch["uid"] = result.non_tensor_batch["uid"].tolist()
        for name in os.environ.get("RLE_TEST_COLUMNS", "").split(","):
            if name in result.non_tensor_batch:
                batch[name] = torch.tensor([float(number) for number in result.non_tensor_batch[name]])
        batch["adv_estimator"] = str(adv_estimator)
        torch.save(batch, Path(os.environ["RLE_TEST_RECORDS"]) / f"{next(numbers):04d}.pt")
        return result

    module.compute_advantage = compute_advantage


when_imported("verl.trainer.ppo.ray_trainer", record)
