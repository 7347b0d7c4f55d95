"""A batch for tests: five prompts, twelve responses, of which six earn something."""

import numpy as np
import torch

from rl_estimators.compare import Rollouts

# Two prompts that are neither solved nor failed, one all wrong, one all right, one with a single response.
GROUPS = {"mixed": [1.0, 0, 0, 0], "half": [0.0, 1], "wrong": [0.0, 0, 0], "right": [1.0, 1], "alone": [1.0]}
LENGTHS = [3, 1, 2, 2, 1, 4, 2, 2, 2, 3, 1, 2]
INDEX = [name for name, scores in GROUPS.items() for _ in scores]
SCORES = np.array([score for scores in GROUPS.values() for score in scores])


def rollouts(scores=SCORES, index=INDEX, lengths=LENGTHS, step=1, **more):
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    rewards = torch.zeros(len(lengths), width)
    rewards[range(len(lengths)), [length - 1 for length in lengths]] = torch.tensor(
        scores, dtype=torch.float32
    )
    pieces = [[" word"] * length for length in lengths]
    inputs = {"token_level_rewards": rewards, "response_mask": mask, "index": list(index), **more}
    return Rollouts("a file", step, [f"prompt {name}" for name in index], pieces, True, inputs)
