"""Said at start rather than after the first rollout: what the configuration asks for and cannot get."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from rl_estimators import patching
from rl_estimators.errors import InputError, UnknownNameError
from rl_estimators.fields import FIELDS
from rl_estimators.hints import did_you_mean
from rl_estimators.verl import greedy
from rl_estimators.verl.estimators import options, spec_of

__all__ = ["prepare"]


def prepare(config: Any) -> bool:
    """Check verl's whole configuration against what its estimator needs.

    Called several times in a run, in the driver and in the trainer's process.

    Returns:
        Whether the estimator needs a critic.

    Raises:
        UnknownNameError: no estimator has that name.
        InputError: an input cannot be provided under this configuration, or an option is unknown.
        PatchError: a hook that the estimator needs is not in force.
    """
    name = str(getattr(config.algorithm.adv_estimator, "value", config.algorithm.adv_estimator))
    known = importlib.import_module("verl.trainer.ppo.core_algos").ADV_ESTIMATOR_REGISTRY
    if name not in known:
        raise UnknownNameError(
            f"algorithm.adv_estimator={name}: no such estimator.{did_you_mean(name, known)} "
            f"Known: {', '.join(sorted(known))}."
        )
    spec = spec_of(name)
    greedy.check(config)  # also for verl's own remax
    if spec is None:  # verl's own: verl knows what else it needs
        return False
    spec.options_from(options(spec, config.algorithm))
    for needed in spec.required:
        if needed in _PROVIDED and not _PROVIDED[needed](config):
            raise InputError(
                f"algorithm.adv_estimator={name} needs {needed} ({FIELDS[needed].meaning}), which this "
                f"configuration does not provide; set {FIELDS[needed].verl}"
            )
    if {*spec.required, *spec.optional} - _HANDED_OVER:
        patching.require("verl_inputs", purpose=f"algorithm.adv_estimator={name}")
    return "values" in spec.required


def _with_reference(config: Any) -> bool:
    return bool(config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss)


def _with_rollout_weights(config: Any) -> bool:
    correction = config.algorithm.get("rollout_correction") or {}
    wanted = correction.get("rollout_is") is not None and not correction.get("bypass_mode", False)
    return bool(wanted and config.actor_rollout_ref.rollout.calculate_log_probs)


def _with_sum_pi_squared(config: Any) -> bool:
    """Not in the v1 trainer, which does not fetch it for the advantage step."""
    return bool(config.actor_rollout_ref.actor.get("calculate_sum_pi_squared") and not config.trainer.use_v1)


_HANDED_OVER = {"token_level_rewards", "response_mask", "index", "reward_baselines"}  # by verl itself
_PROVIDED: Mapping[str, Callable[[Any], bool]] = {
    "values": lambda config: config.critic.enable is not False,
    "ref_log_prob": _with_reference,
    "rollout_log_probs": lambda config: bool(config.actor_rollout_ref.rollout.calculate_log_probs),
    "rollout_is_weights": _with_rollout_weights,
    "sum_pi_squared": _with_sum_pi_squared,
}
