"""Settings of verl's that are fine one by one and not beside an estimator of ours: refused, with the way out."""

from collections.abc import Mapping
from typing import Any

from rl_estimators.errors import InputError
from rl_estimators.registry import Spec

__all__ = ["check"]

_KEY = "algorithm.adv_estimator"
_KL_IN_REWARD = "algorithm.use_kl_in_reward=True"
_KL_IN_LOSS = (
    "use the loss's instead: algorithm.use_kl_in_reward=False actor_rollout_ref.actor.use_kl_loss=True"
)


def check(name: str, spec: Spec, config: Any, options: Mapping[str, Any]) -> None:
    """Refuse what would train on something else than was asked for, or on nothing.

    Args:
        name: The estimator as the configuration has it.
        spec: What it is; one of somebody else's may know what to do with groups of one.
        config: verl's whole configuration.
        options: The estimator's options.

    Raises:
        InputError: names both settings and what to do.
    """
    if config.algorithm.get("use_pf_ppo"):
        raise InputError(
            f"algorithm.use_pf_ppo=True and {_KEY}={name}: verl reweighs the batch for the name gae only, so it would "
            f"have no effect; set algorithm.use_pf_ppo=False, or {_KEY}=gae"
        )
    if not spec.is_ours:
        return
    _check_groups(name, spec, config, options)
    if config.algorithm.get("use_kl_in_reward") and config.algorithm.kl_ctrl.kl_coef != 0:
        _check_kl_in_reward(name, spec, options)


def _check_groups(name: str, spec: Spec, config: Any, options: Mapping[str, Any]) -> None:
    """Each row of the data has a uid of its own in verl, so ``rollout.n`` is the size of every group."""
    n = config.actor_rollout_ref.rollout.n
    raw = "singleton" in spec.options and (
        options.get("singleton") == "raw" or options.get("compat") == "verl"  # which keeps raw scores, too
    )
    if "index" in spec.required and n == 1 and not raw:
        way_out = ", or keep their raw scores: +algorithm.adv_estimator_kwargs.singleton=raw"
        raise InputError(
            f"{_KEY}={name} compares the responses to a prompt, and actor_rollout_ref.rollout.n=1 gives it one: every "
            "advantage would be exactly 0; set actor_rollout_ref.rollout.n to 2 or more"
            f"{way_out if 'singleton' in spec.options else ''}"
        )


def _check_kl_in_reward(name: str, spec: Spec, options: Mapping[str, Any]) -> None:
    charged_twice = spec.name == "remax" and options.get("beta", 0) != 0
    why = {
        "maxrl": f"its scores may not be negative, which the penalty makes them; {_KL_IN_LOSS}",
        "gdpo": f"it reads the rewards before they are summed, so the penalty would have no effect; {_KL_IN_LOSS}",
    }.get(spec.name)
    if charged_twice:
        why = (
            f"its option beta={options['beta']} charges the KL, too; keep one: algorithm.kl_ctrl.kl_coef=0, or "
            "algorithm.adv_estimator_kwargs.beta=0"
        )
    if why:
        raise InputError(f"{_KEY}={name} and {_KL_IN_REWARD}: {why}")
