"""`rl_estimators.value_loss` reaches the critic of verl's legacy trainer (`trainer.use_v1=False`).

The same as `verl_value_loss_v1` around the method that builds the worker groups there.
"""

from rl_estimators.patching import Function, Patch

from . import verl_value_loss_v1


def wrap(original: Function) -> Function:
    return verl_value_loss_v1.wrap(original)


PATCH = Patch(
    name="verl_value_loss_legacy",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.ray_trainer",
    attribute="RayPPOTrainer.init_workers",
    signature="(self)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/ray_trainer.py#L772",
    remove_when="verl_value_loss_v1 is removed, or verl drops its legacy trainer",
    wrap=wrap,
    reviewed={"0.9.0": "3f4f2eba9e4e", "0.9.1": "3f4f2eba9e4e"},
)
