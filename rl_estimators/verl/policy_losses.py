"""Our policy losses in verl's registry: verl's calling convention on one side, ours on the other.

Each is there as ``rle_NAME``, and as ``NAME`` where verl has no loss of that name, for
``actor_rollout_ref.actor.policy_loss.loss_mode``. Its options come from ``+rl_estimators.policy_loss.OPTION=VALUE`` (see
:mod:`rl_estimators.verl.settings`); clip ratios that are not given there are verl's own, ``actor.clip_ratio_low``,
``clip_ratio_high`` and ``clip_ratio_c``, so that ``loss_mode=rle_ppo_clip`` alone computes what ``vanilla`` does; so are
the options in :mod:`rl_estimators.verl.policy_loss_keys`.

The metric ``actor/rl_estimators/policy_loss/NAME`` is 1 in every update that the loss was used in.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from rl_estimators import calls
from rl_estimators.errors import DuplicateNameError, InputError
from rl_estimators.registry import POLICY_LOSSES, Spec
from rl_estimators.verl import core_algos
from rl_estimators.verl.estimators import PREFIX
from rl_estimators.verl.policy_loss_keys import options_of_verl

__all__ = ["INPUTS", "as_verl", "check_weights", "name_of", "offer", "options", "weights_come"]

INPUTS = ("old_log_prob", "log_prob", "advantages", "response_mask")  # verl always passes them
_METRICS = ("pg_clipfrac", "pg_clipfrac_lower", "ppo_kl")  # verl's own losses report them under these names


def offer(module: ModuleType) -> None:
    """Register every policy loss of ours in verl, and each one that is registered with us later."""
    POLICY_LOSSES.subscribe(_offer_one)


def _offer_one(name: str) -> None:
    """Under its own name where verl has none, and always under the prefixed one.

    Raises:
        DuplicateNameError: somebody else has the prefixed name; verl itself would overwrite in silence.
    """
    adapter = as_verl(name)
    for alias in (name, PREFIX + name):
        taken = core_algos.policy_losses().get(alias)
        if taken is None:
            core_algos.module().register_policy_loss(alias)(adapter)
        elif alias != name and taken is not adapter:
            raise DuplicateNameError(
                f"verl's policy loss {alias!r} is already {taken.__module__}:{taken.__qualname__}; "
                f"register {name!r} under another name"
            )


def name_of(loss_mode: str) -> str | None:
    """The name of the policy loss that verl knows as ``loss_mode``, or None if it is not one of ours."""
    function = core_algos.policy_losses().get(loss_mode)
    for name in (loss_mode, loss_mode.removeprefix(PREFIX)):
        if name in POLICY_LOSSES.names() and function is as_verl(name):
            return name
    return None


@functools.cache
def as_verl(name: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """The policy loss ``name`` as a function that takes what verl's ``ppo_loss`` passes."""

    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        spec = POLICY_LOSSES.spec(name)
        given = {} if config is None else _from_config(spec, config)
        if rollout_is_weights is not None:
            _check_takes_weights(spec)
            given["rollout_is_weights"] = rollout_is_weights
        loss, metrics = calls.policy_loss(
            name,
            old_log_prob=old_log_prob,
            log_prob=log_prob,
            advantages=advantages,
            response_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            **given,
        )
        return loss, _as_verl_metrics(name, metrics)

    policy_loss.__name__ = policy_loss.__qualname__ = PREFIX + name
    return policy_loss


def options(spec: Spec, actor: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a policy loss: ``own``, and verl's own keys where those are not given.

    Args:
        spec: The loss.
        actor: verl's actor configuration, as ``DictConfig`` or ``ActorConfig``.
        own: What ``rl_estimators.policy_loss`` names.
    """
    common = actor.get("clip_ratio")
    theirs = {
        "clip_ratio": common,
        "clip_ratio_low": _first(actor.get("clip_ratio_low"), common),
        "clip_ratio_high": _first(actor.get("clip_ratio_high"), common),
        "clip_ratio_c": actor.get("clip_ratio_c"),
    }
    found = {name: value for name, value in theirs.items() if name in spec.options and value is not None}
    return {**found, **options_of_verl(spec, actor), **own}


def _from_config(spec: Spec, config: Any) -> dict[str, Any]:
    given = options(spec, config, config.policy_loss.get("options") or {})
    if spec.takes_config:
        given["config"] = config
    if "global_batch_info" in spec.options or spec.takes_any:
        given["global_batch_info"] = dict(config.global_batch_info)
    return given


def weights_come(config: Any) -> bool:
    """Whether verl will compute ``rollout_is_weights`` under its configuration, or a part of it."""
    from omegaconf import OmegaConf

    correction = OmegaConf.select(config, "algorithm.rollout_correction") or {}
    wanted = correction.get("rollout_is") is not None and not correction.get("bypass_mode", False)
    return bool(wanted and OmegaConf.select(config, "actor_rollout_ref.rollout.calculate_log_probs"))


def check_weights(spec: Spec, config: Any) -> None:
    """Refuse a loss that would leave out the weights that verl will compute.

    Args:
        spec: The loss.
        config: verl's configuration, or a part of it.

    Raises:
        InputError: it has no parameter for them.
    """
    if weights_come(config):
        _check_takes_weights(spec)


def _check_takes_weights(spec: Spec) -> None:
    if not (spec.asks_for("rollout_is_weights") or spec.takes_any):
        raise InputError(
            f"{spec.name} has no parameter rollout_is_weights, so it would leave out the weights that "
            "algorithm.rollout_correction.rollout_is asks for; set that to null or choose another policy loss"
        )


def _as_verl_metrics(name: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    named = {f"actor/rl_estimators/policy_loss/{name}": 1.0}
    for key, value in metrics.items():
        if key in _METRICS:
            key = f"actor/{key}"
        elif not key.startswith("actor/"):
            key = f"actor/rl_estimators/{key}"
        named[key] = float(value.detach() if isinstance(value, Tensor) else value)
    return named


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
