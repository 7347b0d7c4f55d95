"""In the v1 trainer: the critic's value after each response's last token is kept, where verl drops it.

A response that the length limit cut off would have gone on. What its state is worth the critic has said, and
`rl_estimators.bootstrap_truncated` has it used.
"""

from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import bootstrap


def wrap(original: Function) -> Function:
    def _compute_values(self: Any, batch: Any, metrics: Any) -> Any:
        return bootstrap.compute_values(original, self, batch, metrics)

    return _compute_values


PATCH = Patch(
    name="verl_bootstrap",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.v1.trainer_base",
    attribute="PPOTrainer._compute_values",
    signature="(self, batch, metrics)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/v1/trainer_base.py#L1721",
    remove_when="verl's v1 trainer brings the value after a truncated response to the advantage step",
    wrap=wrap,
    reviewed={"0.9.0": "20df17161227", "0.9.1": "20df17161227"},
    body_matters=True,
)
