"""An estimator gets what its signature asks for.

verl passes `values`, `old_log_probs` and the like to its own estimators by name only. The replacement calls the
original and, for the length of that call, keeps the batch where our estimators can read the rest from; the rewards
of greedy responses join it first, for verl's own `remax` too.
"""

import inspect
from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import batch, greedy


def wrap(original: Function) -> Function:
    parameters = inspect.signature(original)

    def compute_advantage(data: Any, *args: Any, **kwargs: Any) -> Any:
        greedy.attach(data)
        given = parameters.bind(data, *args, **kwargs).arguments
        with batch.estimating(**given):
            return original(data, *args, **kwargs)

    return compute_advantage


PATCH = Patch(
    name="verl_inputs",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.ray_trainer",
    attribute="compute_advantage",
    signature=(
        "(data, adv_estimator, gamma=1.0, lam=1.0, num_repeat=1, norm_adv_by_std_in_grpo=True, config=None)"
    ),
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/ray_trainer.py#L187",
    remove_when="verl hands registered estimators the batch, or what their signature asks for",
    wrap=wrap,
    reviewed={"0.9.0": "314695381c75", "0.9.1": "314695381c75"},
)
