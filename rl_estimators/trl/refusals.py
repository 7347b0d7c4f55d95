"""What does not work together, refused when a trainer is made: the reason, and the nearest thing that works.

What :class:`~rl_estimators.trl.config.EstimatorConfig` can see by itself it refuses itself; what a critic cannot be
combined with is in :mod:`rl_estimators.trl.critic.support`. Here is what depends on the estimator, on the trainer's
other arguments.
"""

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS
from rl_estimators.registry import POLICY_LOSSES, Spec
from rl_estimators.trl.config import TRL_LOSS, EstimatorConfig
from rl_estimators.trl.options import changed

__all__ = ["check"]

_ALWAYS = ("token_level_rewards", "response_mask", "index", "reward_components", "old_log_probs")
_OF_LOSSES = ("old_log_prob", "log_prob", "advantages", "returns", "vpreds", "rollout_is_weights")
_ON_REQUEST = ("values", "reward_baselines")  # asking for them makes the trainer provide them
_OF_THE_CRITIC = (
    *("critic", "critic_model_name_or_path", "critic_learning_rate", "critic_warmup_steps"),
    *("critic_micro_batch_size", "vf_coef", "value_loss", "value_loss_kwargs", "cliprange_value"),
)


def check(
    spec: Spec,
    config: EstimatorConfig,
    arguments: Mapping[str, Any],
    value_model: Any,
    token_reward_funcs: Sequence[Any],
) -> None:
    """Refuse what could not work, or would be ignored, before the trainer is made.

    Args:
        spec: The advantage estimator.
        config: The trainer's configuration.
        arguments: The trainer's other arguments, by TRL's names.
        value_model: The critic given to the trainer.
        token_reward_funcs: The per-token reward functions given to it.

    Raises:
        InputError: the message names the settings.
    """
    _check_inputs(spec, config)
    _check_group(spec, config)
    _check_greedy(spec, config, arguments)
    _check_critic(spec, config, value_model)
    _check_bootstrap(spec, config)
    _check_token_rewards(spec, config, token_reward_funcs)
    _check_kl(spec, config)
    _check_losses(config)


def _check_inputs(spec: Spec, config: EstimatorConfig) -> None:
    """An estimator that needs what this run does not have."""
    available = {*_ALWAYS, *_ON_REQUEST}
    if config.bootstrap_truncated and "values" in spec.required:
        available |= {"truncated", "bootstrap_values"}
    if config.beta != 0:
        available.add("ref_log_prob")
    if config.use_vllm:
        available.add("rollout_log_probs")
    missing = [name for name in spec.required if name not in available]
    if missing:
        raise InputError(
            f"adv_estimator={spec.name!r} needs what this trainer cannot supply:\n"
            + "\n".join(f"  {name} ({FIELDS[name].meaning}): {_supply(name)}" for name in missing)
        )


def _supply(name: str) -> str:
    if name in _OF_LOSSES:
        return "losses get it, advantage estimators come before it"
    return FIELDS[name].trl


def _check_group(spec: Spec, config: EstimatorConfig) -> None:
    """Evaluation is not refused: its advantages only enter a loss that nobody minimises, and TRL allows it."""
    if "index" in spec.required and config.num_generations == 1:
        raise InputError(
            f"num_generations=1 with adv_estimator={spec.name!r}, which compares the completions of a prompt: every "
            "advantage would be 0 or arbitrary. Set num_generations to 2 or more, or take an estimator that needs only "
            "one: 'reinforce_pp', 'remax', 'gae'"
        )


def _check_greedy(spec: Spec, config: EstimatorConfig, arguments: Mapping[str, Any]) -> None:
    if "reward_baselines" not in spec.required:
        if changed(config, ["greedy_with_samples"]):
            raise InputError(
                f"greedy_with_samples={config.greedy_with_samples} with adv_estimator={spec.name!r}, for which nothing "
                "is decoded greedily. Drop it, or take an estimator with a greedy baseline, such as 'remax'"
            )
        return
    for name, owner in (("environment_factory", "an environment"), ("rollout_func", "a rollout function")):
        if arguments.get(name) is not None:
            raise InputError(
                f"{name} with adv_estimator={spec.name!r}: its baseline is a greedy completion, and {owner} cannot be "
                "asked for a second, greedy rollout of a prompt. Take 'rloo' (other samples as baseline) or "
                "'reinforce_pp' (one sample), or tools in place of an environment"
            )


def _check_critic(spec: Spec, config: EstimatorConfig, value_model: Any) -> None:
    if "values" in spec.required:
        return
    given = [f"{name}={getattr(config, name)!r}" for name in changed(config, _OF_THE_CRITIC)]
    if value_model is not None:
        given.append("value_model")
    if given:
        raise InputError(
            f"{', '.join(given)} with adv_estimator={spec.name!r}: it asks for no values, so there is no critic to use "
            "it. Drop it, or take an estimator with a critic, such as 'gae'"
        )


def _check_bootstrap(spec: Spec, config: EstimatorConfig) -> None:
    if not config.bootstrap_truncated:
        return
    if not ("values" in spec.required and spec.asks_for("truncated")):
        raise InputError(
            f"bootstrap_truncated=True with adv_estimator={spec.name!r}, which knows nothing of truncated completions. "
            "Set it to False, or take an estimator with a critic, such as 'gae'"
        )
    if config.mask_truncated_completions:
        raise InputError(
            "bootstrap_truncated=True with mask_truncated_completions=True, which leaves truncated completions out: "
            "keep one of the two"
        )


def _check_token_rewards(spec: Spec, config: EstimatorConfig, functions: Sequence[Any]) -> None:
    weights = config.token_reward_weights
    if weights is not None and len(weights) != len(functions):
        raise InputError(
            f"token_reward_weights has {len(weights)} numbers for {len(functions)} token_reward_funcs; give one for "
            "each, or leave it unset"
        )
    for function in functions:
        if not callable(function):
            raise InputError(
                f"token_reward_funcs holds {function!r}, expected functions that return a number per token; reward "
                "models and their names belong in reward_funcs"
            )
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - a callable object with an async __call__
        ):
            name = getattr(function, "__name__", type(function).__name__)
            raise InputError(
                f"token reward function {name!r} is async, which is supported for reward_funcs alone; make it an "
                "ordinary function, which may call asyncio.run"
            )
    if functions and spec.name == "gdpo":
        raise InputError(
            "token_reward_funcs with adv_estimator='gdpo', which takes reward_funcs one by one and reads no rewards of "
            "tokens. Return their sums from a reward function, or take 'grpo'"
        )


def _check_kl(spec: Spec, config: EstimatorConfig) -> None:
    if config.kl_in_reward and spec.name == "gdpo":
        raise InputError(
            "kl_in_reward=True with adv_estimator='gdpo', which reads no rewards of tokens: the KL divergence would "
            "have no effect. Set kl_in_reward=False, which puts it into the loss"
        )
    if config.kl_in_reward and spec.name == "maxrl":
        raise InputError(
            "kl_in_reward=True with adv_estimator='maxrl', whose scores may not be negative, which the penalty makes them. "
            "Set kl_in_reward=False, which puts it into the loss"
        )
    own = config.estimator_options(spec).get("beta") if spec.name == "remax" else None
    if own and config.beta == 0:
        raise InputError(
            f"adv_estimator_kwargs={{'beta': {own}}} with beta=0: there is no reference model to diverge from. Set "
            "beta and kl_in_reward=True in place of it"
        )
    if own and config.kl_in_reward:
        raise InputError(
            f"adv_estimator_kwargs={{'beta': {own}}} with kl_in_reward=True and beta={config.beta}: the KL divergence "
            "would be charged twice. Drop the option"
        )


def _check_losses(config: EstimatorConfig) -> None:
    if config.use_liger_kernel and Version(version("trl")) < Version("1.14"):
        raise InputError(
            f"use_liger_kernel=True: in TRL {version('trl')} Liger computes the whole loss, past advantages per token, "
            "policy_loss, kl_in_reward and the critic. Set use_liger_kernel=False, or install trl>=1.14, where it "
            "brings kernels for layers alone"
        )
    if config.policy_loss == TRL_LOSS or not (config.use_vllm and config.vllm_importance_sampling_correction):
        return
    spec = POLICY_LOSSES.spec(config.policy_loss)
    if not (spec.asks_for("rollout_is_weights") or spec.takes_any):
        raise InputError(
            f"policy_loss={spec.name!r} with use_vllm=True: it has no parameter rollout_is_weights, so it would leave "
            "out the weights that vllm_importance_sampling_correction asks for. Set that to False or choose another "
            "policy loss"
        )
