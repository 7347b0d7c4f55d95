"""In the v1 trainer: the greedy rewards that the samples' rows carry become the batch's ``reward_baselines``.

They are looked up here, where the rows' keys are known, and put into the batch in `verl_inputs`, where the
batch is.
"""

from collections.abc import MutableMapping
from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import greedy


def wrap(original: Function) -> Function:
    def _compute_advantage(self: Any, batch: Any, metrics: MutableMapping[str, Any]) -> Any:
        with greedy.providing(self.config, batch, metrics):
            return original(self, batch, metrics)

    return _compute_advantage


PATCH = Patch(
    name="verl_greedy_baselines",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.v1.trainer_base",
    attribute="PPOTrainer._compute_advantage",
    signature="(self, batch, metrics)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/v1/trainer_base.py#L1743",
    remove_when="verl's v1 trainer makes the greedy rollouts of ReMax, for any estimator that asks for them",
    wrap=wrap,
    reviewed={"0.9.0": "2a4a2aa4a475", "0.9.1": "2a4a2aa4a475"},
    body_matters=True,
)
