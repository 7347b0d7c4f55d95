"""Asking for values switches the critic on, and what cannot work is said before anything starts.

`need_critic` is the one function that verl's trainers call with the configuration before they build anything, first
of all in `main_ppo` itself, before Ray is started. Others call it with a part of the configuration, which must not hurt.
"""

from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import settings, start


def wrap(original: Function) -> Function:
    def need_critic(config: Any) -> bool:
        use_critic = start.prepare(config) or bool(original(config))
        settings.apply(config, use_critic)
        return use_critic

    return need_critic


PATCH = Patch(
    name="verl_need_critic",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.utils",
    attribute="need_critic",
    signature="(config)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/utils.py#L96",
    remove_when="verl asks the estimator's signature whether it needs a critic",
    wrap=wrap,
    reviewed={"0.9.0": "4c05026318c7", "0.9.1": "4c05026318c7"},
)
