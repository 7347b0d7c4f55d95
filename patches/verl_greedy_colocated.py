"""In the v1 trainer: a colocated reward model scores the greedy responses together with the samples."""

from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import greedy


def wrap(original: Function) -> Function:
    def _compute_reward_colocate(self: Any, batch: Any, metrics: Any = None) -> Any:
        return greedy.score_colocated(original, self, batch, metrics)

    return _compute_reward_colocate


PATCH = Patch(
    name="verl_greedy_colocated",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.v1.trainer_base",
    attribute="PPOTrainer._compute_reward_colocate",
    signature="(self, batch, metrics=None)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/v1/trainer_base.py#L1529",
    remove_when="verl's v1 trainer makes the greedy rollouts of ReMax, for any estimator that asks for them",
    wrap=wrap,
    reviewed={"0.9.0": "f0092bcdfbd5", "0.9.1": "f0092bcdfbd5"},
    body_matters=True,
)
