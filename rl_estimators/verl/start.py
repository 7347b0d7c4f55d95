"""Said at start rather than after the first rollout: what the configuration asks for and cannot get."""

from collections.abc import Callable, Mapping
from typing import Any

from rl_estimators import patching
from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS, check_choice
from rl_estimators.hints import did_you_mean
from rl_estimators.registry import ADV_ESTIMATORS, Spec
from rl_estimators.trial import try_out
from rl_estimators.verl import (
    bootstrap,
    combinations,
    core_algos,
    greedy,
    named_options,
    policy_losses,
    reward_keys,
    unknown,
)
from rl_estimators.verl.estimators import OPTIONS_KEY, PREFIX, options, spec_of
from rl_estimators.verl.trainers import is_experimental

__all__ = ["prepare"]

_KEY = "algorithm.adv_estimator"


def prepare(config: Any) -> bool:
    """Check verl's configuration against what its estimator needs.

    Called several times in a run, in the driver and in the trainer's process, and by others with a part of the
    configuration: what is not ours, or not there, is left to verl.

    Returns:
        Whether the estimator needs a critic.

    Raises:
        UnknownNameError: no estimator has that name, and it is meant to be ours.
        InputError: an input cannot be provided under this configuration, or an option does not fit, or a setting would
            have no effect.
        PatchError: a hook that the estimator needs is not in force.
    """
    algorithm = config.get("algorithm")
    name = algorithm.get("adv_estimator") if algorithm is not None else None
    if name is None:
        return False
    name = core_algos.estimator_name(name)
    _report_unknown(name, config)
    _refuse_unread(name, algorithm)
    spec = spec_of(name)
    if is_experimental(config):
        _refuse_greedy(name, spec)
    elif config.get("trainer") is not None:
        greedy.check(config)  # also for verl's own remax
    bootstrap.check(name, spec, config)
    if spec is None:  # verl's own, or somebody else's: they know what else it needs
        return False
    _check_inputs(name, spec, config)
    _check_options(name, spec, config)
    combinations.check(name, spec, config, options(spec, algorithm))
    return "values" in spec.required


def _report_unknown(name: str, config: Any) -> None:
    known = core_algos.estimators()
    if name not in known:
        unknown.report(f"{_KEY}={name}: no such estimator.", name, ADV_ESTIMATORS, known, config)


def _refuse_unread(name: str, algorithm: Any) -> None:
    """Options that nobody reads: verl's own estimators read none, and ours none under a misspelt key.

    An estimator that somebody else registered with verl may read any key.
    """
    function = core_algos.estimators().get(name)
    verls = str(getattr(function, "__module__", "")).startswith("verl.")
    if not verls and spec_of(name) is None:
        return
    for key in algorithm:
        if key not in (OPTIONS_KEY, "adv_estimator") and did_you_mean(str(key), [OPTIONS_KEY]):
            raise InputError(f"algorithm.{key}: no such key.{did_you_mean(str(key), [OPTIONS_KEY])}")
    if verls and algorithm.get(OPTIONS_KEY):
        ours = _counterpart(name)
        raise InputError(
            f"algorithm.{OPTIONS_KEY} is set and {_KEY}={name} is verl's own, which does not read it; "
            + (f"ours is {ours}" if ours else "there is none of ours in its place: remove the options")
        )


def _counterpart(name: str) -> str | None:
    """Ours of the same algorithm as verl's ``name``."""
    own = name.replace("reinforce_plus_plus", "reinforce_pp").removesuffix("_vectorized")
    if own not in ADV_ESTIMATORS.names():
        return None
    return own if spec_of(own) is not None else PREFIX + own


def _refuse_greedy(name: str, spec: Spec | None) -> None:
    """Ours only: what verl's own ``remax`` needs there is verl's to say."""
    if spec is not None and "reward_baselines" in spec.required:
        raise InputError(
            f"{_KEY}={name} needs reward_baselines ({FIELDS['reward_baselines'].meaning}). This configuration has a "
            "top-level key rollout, so it is for verl's experimental trainers, and those do not provide them; train "
            "with verl.trainer.main_ppo"
        )


def _check_inputs(name: str, spec: Spec, config: Any) -> None:
    for needed in spec.required:
        if needed in _PROVIDED and not _PROVIDED[needed](config):
            raise InputError(_cannot(name, needed))
    v1 = config.trainer.get("use_v1", True)
    if reward_keys.missing(spec, options(spec, config.algorithm)):
        raise InputError(_cannot(name, "reward_components"))
    if {*spec.required, *spec.optional} - _HANDED_OVER:
        patching.require("verl_inputs", purpose=f"{_KEY}={name}")
    if v1 and (spec.asks_for("index") or spec.asks_for("reward_components")):
        patching.require("verl_sessions", purpose=f"{_KEY}={name}")


def _cannot(name: str, needed: str) -> str:
    field = FIELDS[needed]
    return f"{_KEY}={name} needs {needed} ({field.meaning}), which this configuration does not provide; set {field.verl}"


def _check_options(name: str, spec: Spec, config: Any) -> None:
    """Names and types for everybody's estimators; for ours also ranges, by estimating one empty token."""
    path = f"algorithm.{OPTIONS_KEY}"
    given = options(spec, config.algorithm)
    of_all = {"masked_rewards": given.pop("masked_rewards", "carry")}  # an option of `estimate` itself
    not_its = {*of_all, reward_keys.OPTION} if reward_keys.read_here(spec) else of_all
    own = named_options.plain(config.algorithm.get(OPTIONS_KEY)) or {}
    named_options.check(path, spec, {option: value for option, value in own.items() if option not in not_its})
    try:
        check_choice(spec.name, "masked_rewards", of_all["masked_rewards"], ("drop", "carry"))
        given = reward_keys.on_nothing(spec, given)
        if spec.is_ours:
            at_hand = [field for field in spec.optional if _at_hand(field, config)]
            try_out(spec, [*spec.required, *at_hand], given)
        else:
            spec.options_from(given)
    except InputError as error:
        raise InputError(f"{_KEY}={name}: {error} Options are set under {path}.NAME.") from None


def _at_hand(field: str, config: Any) -> bool:
    return field not in _PROVIDED or _PROVIDED[field](config)


def _with_critic(config: Any) -> bool:
    return config.critic.enable is None or bool(config.critic.enable)


def _with_reference(config: Any) -> bool:
    return bool(config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss)


def _with_sum_pi_squared(config: Any) -> bool:
    """Not in the v1 trainer, which does not fetch it for the advantage step."""
    asked = config.actor_rollout_ref.actor.get("calculate_sum_pi_squared")
    return bool(asked and not config.trainer.get("use_v1", True))


def _with_truncation(config: Any) -> bool:
    """In the legacy trainer somebody may have put columns of these names into the batch."""
    return bootstrap.wanted(config) or not config.trainer.get("use_v1", True)


_HANDED_OVER = {"token_level_rewards", "response_mask", "index", "reward_baselines"}  # by verl itself
_PROVIDED: Mapping[str, Callable[[Any], bool]] = {
    "values": _with_critic,
    "ref_log_prob": _with_reference,
    "rollout_log_probs": lambda config: bool(config.actor_rollout_ref.rollout.calculate_log_probs),
    "rollout_is_weights": policy_losses.weights_come,
    "sum_pi_squared": _with_sum_pi_squared,
    **dict.fromkeys(bootstrap.FIELDS, _with_truncation),
}
