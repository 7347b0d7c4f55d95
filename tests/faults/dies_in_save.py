"""Loaded into verl's processes by a test: the one that writes the critic's optimizer is killed before it does.

``RLE_TEST_DIES_AT`` is the step, by the folder that verl writes to; without it nothing happens.
"""

import os
import signal

from rl_estimators.imports import when_imported


def arm(module):
    original = module.torch.save

    def save(state, file, *args, **kwargs):
        step = os.environ.get("RLE_TEST_DIES_AT")
        if step and f"global_step_{step}/critic/optim" in str(file):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(state, file, *args, **kwargs)

    module.torch.save = save


when_imported("verl.utils.checkpoint.fsdp_checkpoint_manager", arm)
