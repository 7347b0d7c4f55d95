"""What ``rl-estimators train`` is told: by a YAML file, and by the command line, which wins."""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean
from rl_estimators.modules import load_module
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES
from rl_estimators.trl.config import TRL_LOSS, EstimatorConfig
from rl_estimators.trl.functions import builtin_rewards
from rl_estimators.trl.grpo import GRPOTrainer
from rl_estimators.trl.options import look_up
from rl_estimators.trl.ppo import PPOTrainer
from rl_estimators.trl.reinforce_pp import ReinforcePPTrainer
from rl_estimators.trl.reinforce_pp_baseline import ReinforcePPBaselineTrainer
from rl_estimators.trl.remax import ReMaxTrainer
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["TRAINERS", "Arguments", "TrainArguments", "parse"]

TRAINERS: Mapping[str, type[EstimatorTrainer]] = {
    "grpo": GRPOTrainer,
    "ppo": PPOTrainer,
    "reinforce_pp": ReinforcePPTrainer,
    "reinforce_pp_baseline": ReinforcePPBaselineTrainer,
    "remax": ReMaxTrainer,
}
_USAGE = "rl-estimators train [--config FILE.yaml] [--trainer NAME] [--SETTING VALUE ...]"


@dataclass
class TrainArguments(ScriptArguments):
    """What to train with, beside TRL's own arguments.

    Args:
        trainer: Name of a trainer, with its paper's defaults; None for :class:`EstimatorTrainer`.
        reward_funcs: Reward functions.
        token_reward_funcs: Reward functions that return a number per token.
        reward_model_name_or_path: A reward model, beside ``reward_funcs``.
        external_modules: Modules imported first.
    """

    trainer: str | None = field(
        default=None,
        metadata={
            "help": f"Trainer, with its paper's defaults: {', '.join(TRAINERS)}. Unset, the one that takes any "
            "adv_estimator."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: package.module.function, path/to/file.py:function, or one of TRL's "
            "(accuracy_reward, think_format_reward, ...). 'name(option=value)' stands for what name returns when "
            "called so: get_soft_overlong_punishment(max_completion_len=512, soft_punish_cache=64)."
        },
    )
    token_reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Functions that return a number per token of each completion, named likewise."},
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A sequence classification model that gives a reward."}
    )
    external_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules or .py files to import first, such as those that register estimators and losses."
        },
    )


class Arguments(NamedTuple):
    """Everything that was said."""

    trainer: type[EstimatorTrainer]
    script: TrainArguments
    config: EstimatorConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig


def parse(arguments: Sequence[str]) -> Arguments:
    """Read a command line and the YAML file it may name with ``--config``.

    Raises:
        InputError: an unknown key or trainer, a file that is not there or holds no settings, a model, data or rewards
            that are not set, or what :class:`EstimatorConfig` refuses.
        UnknownNameError: no such estimator or loss.
    """
    first, rest = _first_look(arguments)
    settings = {} if first.config is None else _read(first.config)
    for module in first.external_modules or _listed(settings.get("external_modules")):
        load_module(module, "external_modules")
    trainer = _trainer(settings.get("trainer") if first.trainer is None else first.trainer)
    classes = (TrainArguments, trainer.config_class, ModelConfig, DatasetMixtureConfig)
    known = {one.name for kind in classes for one in fields(kind) if one.init}
    _refuse_unknown(settings, known, f"in {first.config}")
    parser = TrlParser(classes, prog="rl-estimators train", usage=_USAGE, allow_abbrev=False)
    parser.set_defaults_with_config(**settings)
    given, words = parser.parse_known_args(rest)
    _refuse_unknown([word.partition("=")[0] for word in words], {*known, "config"}, "on the command line")
    _look_up_names(given)
    _refuse_incomplete(given)
    script, *others = parser.parse_args_into_dataclasses(rest, look_for_args_file=False)
    for name in ("reward_funcs", "token_reward_funcs", "external_modules"):
        setattr(script, name, _listed(getattr(script, name)))
    return Arguments(trainer, script, *others)


def _first_look(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What decides which other arguments there are; and all arguments but ``--config``."""
    parser = argparse.ArgumentParser(prog="rl-estimators train", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    rest = parser.parse_known_args(arguments)[1]
    parser.add_argument("--trainer")
    parser.add_argument("--external_modules", "--external-modules", nargs="+")
    return parser.parse_known_args(arguments)[0], rest


def _read(path: str) -> dict[str, Any]:
    """The settings in a YAML file; its ``env`` goes to the environment, as in TRL."""
    if not Path(path).is_file():
        hint = f" For the defaults of a trainer: --trainer {path}" if path in TRAINERS else ""
        raise InputError(f"config: no file {path!r} in {Path.cwd()}.{hint}")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"config: {path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"config: {path} holds {settings!r}, expected settings by name")
    environment = settings.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise InputError(f"config: env in {path} is {environment!r}, expected variables by name")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return {str(name).replace("-", "_"): value for name, value in settings.items()}


def _trainer(name: str | None) -> type[EstimatorTrainer]:
    if name is None:
        return EstimatorTrainer
    if name not in TRAINERS:
        raise InputError(
            f"trainer={name!r} is unknown, expected one of {', '.join(TRAINERS)}; any other estimator goes by "
            f"adv_estimator without a trainer.{did_you_mean(str(name), TRAINERS)}"
        )
    return TRAINERS[name]


def _refuse_unknown(names: Iterable[str], known: set[str], place: str) -> None:
    for name in names:
        bare = name.lstrip("-").replace("-", "_")
        if name.startswith("-") or bare not in known:  # a known one with dashes would have been understood
            trainer = f" A trainer is named with --trainer {name}." if name in TRAINERS else ""
            raise InputError(f"{name!r} {place} is not a setting.{trainer or did_you_mean(bare, known)}")


def _look_up_names(given: argparse.Namespace) -> None:
    """Before TRL's configuration is made: without a GPU it stops there, and a slip would not be heard of."""
    if given.adv_estimator is not None:
        look_up(ADV_ESTIMATORS, "adv_estimator", given.adv_estimator)
    if given.policy_loss != TRL_LOSS:
        look_up(POLICY_LOSSES, "policy_loss", given.policy_loss)
    look_up(VALUE_LOSSES, "value_loss", given.value_loss)


def _refuse_incomplete(given: argparse.Namespace) -> None:
    """What every run needs; early, for the same reason."""
    if given.model_name_or_path is None:
        raise InputError("model_name_or_path is not set: a folder or a name on the Hub")
    if not given.reward_funcs and given.reward_model_name_or_path is None:
        raise InputError(
            "reward_funcs is not set: package.module.function, path/to/file.py:function, or one of "
            f"{', '.join(builtin_rewards())}"
        )
    if not given.datasets and given.dataset_name is None:
        raise InputError(
            "dataset_name is not set: a folder with train.jsonl, or a name on the Hub; or datasets, a mixture"
        )


def _listed(value: Any) -> list[str]:
    """A YAML file may name one thing without the brackets of a list."""
    return [value] if isinstance(value, str) else list(value or [])
