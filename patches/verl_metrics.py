"""verl logs what an estimator counts.

An estimator returns two tensors, so its counts (excluded responses, carried rewards) have no way into verl's
logs. Both of verl's trainers call ``compute_data_metrics`` once a step, after the advantages.
"""

from collections.abc import Callable
from typing import Any

from rl_estimators.patching import Patch
from rl_estimators.verl import step_metrics


def wrap(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def compute_data_metrics(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**original(*args, **kwargs), **step_metrics.drain()}

    return compute_data_metrics


PATCH = Patch(
    name="verl_metrics",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.metric_utils",
    attribute="compute_data_metrics",
    signature="(batch, use_critic=True)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/metric_utils.py",
    remove_when="verl's estimators can return metrics",
    wrap=wrap,
    reviewed={"0.9.0": "081d0a19a827", "0.9.1": "081d0a19a827"},
)
