"""Our estimators in verl's registry: verl's calling convention on one side, ours on the other.

An estimator's options come from verl's configuration: ``algorithm.gamma``, ``algorithm.lam``,
``algorithm.norm_adv_by_std_in_grpo`` (our ``norm_by_std``), for ``gdpo`` ``algorithm.gdpo_reward_keys`` and
``gdpo_reward_weights``, and everything else from ``+algorithm.adv_estimator_kwargs.NAME=VALUE``, which wins.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from rl_estimators import patching
from rl_estimators.calls import estimate
from rl_estimators.errors import InputError
from rl_estimators.metrics import collect_metrics
from rl_estimators.registry import ADV_ESTIMATORS, Estimate, Spec
from rl_estimators.verl import batch, core_algos, diagnostics, reward_keys, step_metrics

__all__ = ["KEY", "OPTIONS_KEY", "PREFIX", "as_verl", "offer", "options", "spec_of"]

PREFIX = "rle_"  # verl treats gae, grpo and remax specially by name; under this prefix the name is ours alone
OPTIONS_KEY = "adv_estimator_kwargs"
KEY = "rl_estimators"  # the node of losses and switches


def offer(module: ModuleType) -> None:
    """Register every estimator of ours in verl, and each one that is registered with us later."""
    ADV_ESTIMATORS.subscribe(_offer_one)


def _offer_one(name: str) -> None:
    """Under its own name where verl has none, and always under the prefixed one."""
    adapter = as_verl(name)
    for alias in (name, PREFIX + name):
        taken = core_algos.estimators().get(alias)
        if taken is None or (alias != name and taken != adapter):  # the latter: let verl name both owners
            core_algos.module().register_adv_est(alias)(adapter)


@functools.cache
def as_verl(name: str) -> Callable[..., Estimate]:
    """The estimator ``name`` as a function that takes what verl's ``compute_advantage`` passes."""

    def estimator(
        token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, **inputs: Any
    ) -> Estimate:
        given = {**batch.inputs(), **inputs, **options(ADV_ESTIMATORS.spec(name), config)}
        given |= {"token_level_rewards": token_level_rewards, "response_mask": response_mask}
        given = reward_keys.resolve(ADV_ESTIMATORS.spec(name), given)
        _require_hooks(name, given)
        _require_reader(config)
        with collect_metrics() as metrics:
            result = estimate(name, **{"masked_rewards": "carry", **given})
        step_metrics.add(metrics)
        if diagnostics.switched_on(config):
            step_metrics.keep(diagnostics.of_batch(ADV_ESTIMATORS.spec(name), config, given, result))
        return result

    estimator.__name__ = estimator.__qualname__ = PREFIX + name
    return estimator


def _require_hooks(name: str, given: Mapping[str, Any]) -> None:
    """An input is missing: it may be that what would have provided it, or have said so at start, is off."""
    missing = [needed for needed in ADV_ESTIMATORS.spec(name).required if needed not in given]
    if missing:
        for hook in ("verl_need_critic", "verl_inputs"):
            patching.require(hook, purpose=f"{PREFIX}{name}, which is missing {', '.join(missing)},")


def _require_reader(config: Any) -> None:
    """Losses and switches of ours are read at start: where the hook that does that is off, verl would train without them."""
    for key in ("policy_loss", "value_loss", "bootstrap_truncated"):
        if diagnostics.select(config, f"{KEY}.{key}"):
            patching.require("verl_need_critic", purpose=f"{KEY}.{key}")


def spec_of(alias: str) -> Spec | None:
    """What the estimator that verl knows as ``alias`` needs; None if it is not one of ours.

    Raises:
        EntryPointError, DuplicateNameError: it is, and its owner cannot be imported or has a rival.
    """
    function = core_algos.estimators().get(alias)
    for name in (alias, alias.removeprefix(PREFIX)):
        if name in ADV_ESTIMATORS.names() and function is as_verl(name):
            return ADV_ESTIMATORS.spec(name)
    return None


def options(spec: Spec, config: Any) -> dict[str, Any]:
    """The options that verl's ``algorithm`` configuration holds for an estimator.

    Raises:
        InputError: ``adv_estimator_kwargs`` is no mapping.
    """
    found: dict[str, Any] = {}
    called_with = batch.settings()  # a trainer may call compute_advantage with gamma and without a config
    config = {} if config is None else config
    if spec.takes_config and config:
        found["config"] = config
    theirs = {"gamma": "gamma", "lam": "lam", "norm_by_std": "norm_adv_by_std_in_grpo"}
    if spec.name == "gdpo":
        theirs |= {"reward_keys": "gdpo_reward_keys", "weights": "gdpo_reward_weights"}
    for ours, key in theirs.items():
        value = config.get(key, called_with.get(key))
        if ours in spec.options and value is not None:
            found[ours] = value
    own = config.get(OPTIONS_KEY)
    if own is not None and not hasattr(own, "items"):
        raise InputError(
            f"algorithm.{OPTIONS_KEY} is {own!r}, expected options by name: "
            f"+algorithm.{OPTIONS_KEY}.NAME=VALUE, see `rl-estimators list`"
        )
    return found | {str(name): value for name, value in (own or {}).items()}
