"""`rl_estimators.value_loss` reaches the critic of verl's v1 trainer, and diagnostics its actor and its critic.

`_setup` builds the worker groups from the configuration and gives their workers verl's losses. Before it, the settings
are checked and put where the actor's workers find them; after it, the workers get ours, where there is something to
change or to watch.
"""

from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import policy_updates, settings, value_loss
from rl_estimators.verl.worker_losses import are_verls


def wrap(original: Function) -> Function:
    def _setup(self: Any) -> None:
        chosen = settings.apply(self.config, self.use_critic)
        original(self)
        loss = chosen.value_loss
        watched = [
            role
            for role in ("Actor", "Critic")
            if chosen.diagnostics and are_verls(self.role_worker_mapping, role)
        ]
        if loss is not None or ("Critic" in watched and self.use_critic):
            name, options = (None, {}) if loss is None else (loss.name, loss.options)
            value_loss.send(self.critic_wg, self.config.critic, name, options, chosen.diagnostics)
        if "Actor" in watched:
            policy_updates.send(self.actor_rollout_wg, self.config)

    return _setup


PATCH = Patch(
    name="verl_value_loss_v1",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.trainer.ppo.v1.trainer_base",
    attribute="PPOTrainer._setup",
    signature="(self)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/trainer/ppo/v1/trainer_base.py#L226",
    remove_when="verl chooses the critic's loss by name from a registry, as it does the actor's",
    wrap=wrap,
    reviewed={"0.9.0": "f6b19038da99", "0.9.1": "248aee497276"},
)
