"""What the v1 trainer's rows are to our estimators, where it still has their keys.

An estimator that asks for `reward_components` gets what the reward function returned beside its score, which the
trainer does not fetch for the advantage step; one that asks for `truncated` and `bootstrap_values` gets those, if the
configuration says so. And every group estimator of ours counts a session once, as verl does for the name `grpo` only.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import bootstrap, reward_info, sessions
from rl_estimators.verl.core_algos import estimator_name


def wrap(original: Function) -> Function:
    parameters = inspect.signature(original)

    def compute_advantage_for_multi_trajectories(
        data: Any, batch_keys: Sequence[str], adv_estimator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        given = parameters.bind(data, batch_keys, adv_estimator, *args, **kwargs).arguments
        for more in (reward_info, bootstrap):
            more.attach(data, batch_keys, adv_estimator, given.get("config"))
        if not sessions.is_group_estimator(estimator_name(adv_estimator)):
            return original(data, batch_keys, adv_estimator, *args, **kwargs)
        return sessions.compute(original, data, batch_keys, adv_estimator, *args, **kwargs)

    return compute_advantage_for_multi_trajectories


PATCH = Patch(
    name="verl_sessions",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.v1.utils",
    attribute="compute_advantage_for_multi_trajectories",
    signature=(
        "(data, batch_keys, adv_estimator, gamma=1.0, lam=1.0, num_repeat=1, norm_adv_by_std_in_grpo=True, "
        "config=None)"
    ),
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/v1/utils.py#L148",
    remove_when=(
        "verl reduces sessions for every estimator that takes `index`, and its v1 trainer brings reward_extra_info to "
        "the advantage step"
    ),
    wrap=wrap,
    reviewed={"0.9.0": "d973cc8aec79", "0.9.1": "d973cc8aec79"},
)
