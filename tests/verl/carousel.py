"""Loaded into verl's processes by a test: another advantage estimator in every step of one run.

The trainer reads ``algorithm.adv_estimator`` anew in each step; here it finds the next of ``RLE_TEST_ESTIMATORS``.
"""

import functools
import itertools
import os

from rl_estimators.imports import when_imported

names = itertools.chain(os.environ["RLE_TEST_ESTIMATORS"].split(","))


def turn(module):
    original = module.PPOTrainer._compute_advantage

    @functools.wraps(original)
    def _compute_advantage(self, *args, **kwargs):
        self.config.algorithm.adv_estimator = next(names)
        return original(self, *args, **kwargs)

    module.PPOTrainer._compute_advantage = _compute_advantage


when_imported("verl.trainer.ppo.v1.trainer_base", turn)
