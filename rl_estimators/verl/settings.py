"""The node ``rl_estimators`` in verl's configuration: which losses to train with, and two switches.

    +rl_estimators.value_loss.name=huber +rl_estimators.value_loss.delta=0.5
    +rl_estimators.policy_loss.name=ppo_clip +rl_estimators.policy_loss.clip_ratio_c=3.0
    +rl_estimators.diagnostics=False
    +rl_estimators.bootstrap_truncated=True

``name`` is one of ``rl-estimators list``; the other keys are that loss's options, as its signature has them. How
losses are averaged stays with verl (``loss_agg_mode``). Options of an estimator stand elsewhere, in
``+algorithm.adv_estimator_kwargs.OPTION=VALUE``; presets are described in :mod:`rl_estimators.verl.presets`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl_estimators import patching
from rl_estimators.backends import choose
from rl_estimators.errors import EstimatorError, InputError, PatchError, UnknownNameError
from rl_estimators.hints import did_you_mean
from rl_estimators.registry import POLICY_LOSSES, VALUE_LOSSES, Registry, Spec
from rl_estimators.trial import try_out
from rl_estimators.verl import core_algos, named_options, policy_losses, presets, unknown, value_loss
from rl_estimators.verl.estimators import KEY, PREFIX, spec_of
from rl_estimators.verl.trainers import is_experimental

__all__ = ["KEY", "Loss", "Settings", "apply", "read"]

_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
_TARGET = "actor_rollout_ref.actor.policy_loss._target_"
_ENVIRONMENT = "ray_kwargs.ray_init.runtime_env.env_vars"
_VARIABLES = (choose.VARIABLE, patching.DISABLE, patching.STRICT)
_STOCK_MODE = "vanilla"  # what verl's configuration says when the user says nothing
_STOCK_TARGET = "verl.workers.config.PolicyLossConfig"
_OUR_TARGET = "rl_estimators.verl.actor_config.PolicyLossConfig"
_VERLS = ("loss_agg_mode", "global_batch_info")  # options that verl gives to every loss


@dataclass
class Schema:
    """The node's keys and their types, for omegaconf to check. A loss's options are in its signature."""

    policy_loss: dict[str, Any] | None = None
    value_loss: dict[str, Any] | None = None
    diagnostics: bool = True
    bootstrap_truncated: bool = False  # read in bootstrap.py


@dataclass(frozen=True)
class Loss:
    """A loss by name, with the options that were given for it."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """The whole node.

    Attributes:
        policy_loss: None where verl's own stays.
        value_loss: Likewise.
        diagnostics: Whether the workers' updates are watched: something of ours is in use, and nobody switched it off.
    """

    policy_loss: Loss | None = None
    value_loss: Loss | None = None
    diagnostics: bool = False


@dataclass(frozen=True)
class _Kind:
    """What is particular to one of the two kinds of losses."""

    registry: Registry
    inputs: tuple[str, ...]  # verl always has them
    counts_in_config: bool  # verl's config brings the counts of the global batch along
    section: str  # where verl's configuration has the like
    options: Callable[[Spec, Any, Mapping[str, Any]], dict[str, Any]]


_KINDS = {
    "policy_loss": _Kind(
        POLICY_LOSSES,
        policy_losses.INPUTS,
        True,
        "actor_rollout_ref.actor",
        policy_losses.options,
    ),
    "value_loss": _Kind(VALUE_LOSSES, value_loss.INPUTS, False, "critic", value_loss.options),
}


def read(config: Any) -> Settings:
    """Read the node ``rl_estimators`` of verl's whole configuration and check it.

    Raises:
        UnknownNameError: no loss has that name.
        InputError: anything else that does not fit; the message names the full key.
    """
    _refuse_misspelt(config)
    node = _schema(config.get(KEY))
    losses = {key: _read_loss(config, key, node[key]) for key in _KINDS if node[key] is not None}
    # without the hook nobody would make numbers of what the workers report
    watched = node["diagnostics"] and patching.in_force("verl_log")
    return Settings(**losses, diagnostics=watched and (bool(losses) or _uses_ours(config)))


def apply(config: Any, use_critic: bool | None = None) -> Settings:
    """Check everything about losses at start, and put the policy loss where verl's actor finds it.

    Changes ``config`` in place; a second call finds what the first one left and changes nothing.

    Args:
        config: verl's whole configuration.
        use_critic: Whether the run has a critic, if that is known yet.

    Raises:
        UnknownNameError: no loss has that name.
        InputError: something does not fit, or contradicts another key.
        PatchError: what puts the loss into verl is not in force.
    """
    settings = read(config)
    _put_environment(config)
    if settings.value_loss is not None:
        _check_critic(config, settings.value_loss.name, use_critic)
    if settings.policy_loss is not None:
        _put_policy_loss(config, settings.policy_loss)
    else:
        _check_mode(config)
    return settings


def _put_environment(config: Any) -> None:
    """Our variables on the list that verl hands to Ray: a cluster that was there before does not have this process's."""
    from omegaconf import OmegaConf

    ours = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if ours and config.get("ray_kwargs") is not None:
        given = OmegaConf.select(config, _ENVIRONMENT) or {}
        OmegaConf.update(config, _ENVIRONMENT, {**ours, **given}, force_add=True)


def _refuse_misspelt(config: Any) -> None:
    """Hydra adds any key at all, and nobody would read a node that is called nearly like ours."""
    for key in config:
        if key != KEY and did_you_mean(str(key), [KEY]):
            raise InputError(f"{key}: no such key.{did_you_mean(str(key), [KEY])}")


def _schema(node: Any) -> dict[str, Any]:
    """The node as :class:`Schema` has it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, ValidationError

    node = {} if node is None else named_options.plain(node)
    if not isinstance(node, dict):
        raise InputError(_no_mapping(node))
    schema = OmegaConf.structured(Schema)
    for key, value in node.items():
        try:
            schema[key] = value
        except ConfigKeyError:
            raise InputError(
                f"{KEY}.{key}: no such key.{did_you_mean(str(key), schema)} Known: {', '.join(schema)}."
            ) from None
        except ValidationError:
            expected = f"a name and options by key: +{KEY}.{key}.name={value}"
            expected = expected if key in _KINDS else f"true or false: +{KEY}.{key}=False"
            raise InputError(f"{KEY}.{key} is {value!r}, expected {expected}") from None
    found: dict[str, Any] = OmegaConf.to_container(schema)
    return found


def _no_mapping(node: Any) -> str:
    names = list(presets.texts())
    return (
        f"{KEY}={node} names no preset: Hydra took it as a plain value, so nothing of it is in force. Presets are "
        f"spelled +{presets.GROUP}=NAME, where Hydra refuses names it does not find.{did_you_mean(PREFIX + str(node), names)} "
        f"Known: {', '.join(names)}. The keys of {KEY} itself: {', '.join(f'{KEY}.{kind}.name' for kind in _KINDS)}."
    )


def _uses_ours(config: Any) -> bool:
    """Whether the configuration has an estimator or a policy loss of ours."""
    from omegaconf import OmegaConf

    estimator, mode = OmegaConf.select(config, "algorithm.adv_estimator"), OmegaConf.select(config, _MODE)
    if estimator is not None and spec_of(core_algos.estimator_name(estimator)) is not None:
        return True
    return isinstance(mode, str) and policy_losses.name_of(mode) is not None


def _read_loss(config: Any, key: str, node: Mapping[str, Any]) -> Loss:
    path, kind = f"{KEY}.{key}", _KINDS[key]
    options = dict(node)
    name = options.pop("name", None)
    if name is None:
        raise InputError(
            f"{path}.name is missing, so this would have no effect: {path}.{next(iter(node), '*')}; set the name to "
            f"one of {', '.join(kind.registry.names())}"
        )
    name = str(name)
    _check_name(key, name)
    options = _without_unset(kind.registry, name, options)
    _check_loss(config, path, kind, name, options)
    return Loss(name, options)


def _without_unset(registry: Registry, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is null and an option of another loss: a preset says so of the loss that it names."""
    own = registry.spec(name).options
    others = {
        option for other in registry.names() if other != name for option in registry.spec(other).options
    }
    return {o: value for o, value in options.items() if value is not None or o in own or o not in others}


def _check_name(key: str, name: str) -> None:
    path, kind = f"{KEY}.{key}", _KINDS[key]
    try:
        kind.registry.spec(name)
    except UnknownNameError as error:
        own = f" verl's own are chosen with {_MODE}." if key == "policy_loss" else ""
        raise UnknownNameError(f"{path}.name={name}: {error}{own}") from None
    except EstimatorError as error:
        raise type(error)(f"{path}.name={name}: {error}") from error


def _check_loss(config: Any, path: str, kind: _Kind, name: str, given: Mapping[str, Any]) -> None:
    """Check a loss and its options; ``path`` is the key that asks for them."""
    spec = kind.registry.spec(name)
    _check_use(path, kind, spec)
    if kind.registry is POLICY_LOSSES:
        policy_losses.check_weights(spec, config)
    if "loss_agg_mode" in given:
        mode = given["loss_agg_mode"]
        raise InputError(
            f"{path}.loss_agg_mode: verl owns it; set {kind.section}.loss_agg_mode={mode} instead"
        )
    if "global_batch_info" in given:
        raise InputError(f"{path}.global_batch_info: verl counts it itself in every update; leave it out")
    named_options.check(path, spec, given, hidden=_VERLS)
    if spec.is_ours:
        _try(path, kind, spec, kind.options(spec, _select(config, kind.section), given))


def _check_use(path: str, kind: _Kind, spec: Spec) -> None:
    """Refuse a loss that verl could not call, or whose sum over micro-batches would depend on their number."""
    missing = [name for name in spec.required if name not in kind.inputs]
    if missing:
        raise InputError(
            f"{path}: {spec.name} needs {', '.join(missing)}, which verl does not hand to a loss; "
            f"it has {', '.join(kind.inputs)}"
        )
    for needed in _VERLS:
        carried = needed == "global_batch_info" and kind.counts_in_config and spec.takes_config
        if needed not in spec.options and not spec.takes_any and not carried:
            raise InputError(
                f"{path}: {spec.name} has no parameter {needed}, without which verl's micro-batches do not add up "
                "to the batch: give it one and hand it to rl_estimators.aggregation.aggregate"
            )


def _check_critic(config: Any, name: str, use_critic: bool | None) -> None:
    if is_experimental(config):
        raise InputError(
            f"{KEY}.value_loss.name={name}: this configuration has a top-level key rollout, so it is for verl's "
            f"experimental trainers, and those give their critic no loss of ours; remove {KEY}.value_loss, or train "
            "with verl.trainer.main_ppo"
        )
    if use_critic is False:
        raise InputError(
            f"{KEY}.value_loss.name={name}: this run has no critic that it could train; choose an estimator with "
            f"values, set critic.enable=True, or remove {KEY}.value_loss"
        )
    trainer = "v1" if config.trainer.get("use_v1", True) else "legacy"
    patching.require(f"verl_value_loss_{trainer}", purpose=f"{KEY}.value_loss.name={name}")


def _put_policy_loss(config: Any, loss: Loss) -> None:
    from omegaconf import open_dict

    node = config.actor_rollout_ref.actor.policy_loss
    mode, target = node.get("loss_mode", _STOCK_MODE), node.get("_target_", _STOCK_TARGET)
    if mode != _STOCK_MODE and policy_losses.name_of(mode) != loss.name:
        raise InputError(
            f"two policy losses are named: {KEY}.policy_loss.name={loss.name} and {_MODE}={mode}; remove one "
            f"(from a preset: ~{KEY}.policy_loss)"
        )
    if target not in (_STOCK_TARGET, _OUR_TARGET):
        raise InputError(
            f"{KEY}.policy_loss.name={loss.name} needs {_TARGET} to hold its options, and that is set to {target}; "
            f"remove one of the two"
        )
    if policy_losses.name_of(PREFIX + loss.name) is None:
        raise PatchError(
            f"{KEY}.policy_loss.name={loss.name}: verl does not know it as {PREFIX + loss.name}; see `rl-estimators doctor`"
        )
    with open_dict(node):
        node.loss_mode = PREFIX + loss.name
        node._target_ = _OUR_TARGET
        node.options = dict(loss.options)


def _check_mode(config: Any) -> None:
    """A loss chosen by verl's own key: if it is meant to be ours it exists, and verl's clip ratios suit it."""
    from omegaconf import OmegaConf

    mode = OmegaConf.select(config, _MODE)  # verl calls need_critic with partial configurations, too
    known = core_algos.policy_losses()
    if not isinstance(mode, str):
        return
    if mode not in known:
        unknown.report(f"{_MODE}={mode}: no such policy loss.", mode, POLICY_LOSSES, known, config)
        return
    name = policy_losses.name_of(mode)  # somebody else's name is somebody else's to check
    if name is not None:
        _check_loss(config, f"{_MODE}={mode}", _KINDS["policy_loss"], name, {})


def _try(path: str, kind: _Kind, spec: Spec, options: Mapping[str, Any]) -> None:
    """The ranges of a loss's options, its own and those that verl's configuration sets."""
    try:
        try_out(spec, kind.inputs, options)
    except InputError as error:
        raise InputError(f"{path}: {error}; what is not given comes from {kind.section}") from None


def _select(config: Any, section: str) -> Any:
    for part in section.split("."):
        config = config[part]
    return config
