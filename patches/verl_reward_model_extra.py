"""A reward model on devices of its own works with verl's discriminative path.

Where the reward is computed beside the rollout, the agent loop reads ``reward_extra_info`` from what the reward loop
returns; the discriminative path leaves it out, and every rollout fails with a KeyError, whatever the estimator
(verl issue 7368). An empty one is what every other path returns where there is nothing to tell.
"""

from typing import Any

from rl_estimators.patching import Function, Patch


def wrap(original: Function) -> Function:
    async def compute_score_disrm(self: Any, data: Any) -> dict[str, Any]:
        return {"reward_extra_info": {}, **await original(self, data)}

    return compute_score_disrm


PATCH = Patch(
    name="verl_reward_model_extra",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.experimental.reward_loop.reward_loop",
    attribute="RewardLoopWorker.compute_score_disrm",
    signature="(self, data)",
    upstream="https://github.com/verl-project/verl/issues/7368",
    remove_when="verl's compute_score_disrm returns reward_extra_info",
    wrap=wrap,
    reviewed={"0.9.0": "ea872e9777aa", "0.9.1": "ea872e9777aa"},
)
