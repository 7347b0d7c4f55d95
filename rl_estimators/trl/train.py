"""``rl-estimators train``: one of our trainers from a YAML file and a command line, as ``trl grpo`` is one of TRL's.

In several processes: ``accelerate launch -m rl_estimators train ...``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import transformers
from datasets import load_dataset
from packaging.version import Version
from trl import ScriptArguments, get_dataset, get_peft_config, get_quantization_config

from rl_estimators.errors import InputError
from rl_estimators.trl import functions
from rl_estimators.trl.arguments import Arguments, TrainArguments, parse
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["build", "prepare", "run"]


def prepare(arguments: Sequence[str]) -> tuple[Arguments, EstimatorTrainer]:
    """Read a command line and make its trainer.

    Raises:
        EstimatorError: the settings are refused, or something they name is not there.
    """
    given = parse(arguments)
    return given, build(given)


def run(given: Arguments, trainer: EstimatorTrainer) -> None:
    """Train, save, and push if asked to."""
    config = given.config
    trainer.train(resume_from_checkpoint=_checkpoint(config.resume_from_checkpoint))
    trainer.save_model(config.output_dir)
    trainer.accelerator.print(f"saved: {config.output_dir}")
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=given.script.dataset_name)
        trainer.accelerator.print(f"pushed: {trainer.hub_model_id}")
    if Version(transformers.__version__) >= Version("5.18.0"):
        trainer.end()  # trackers and the process group


def build(given: Arguments) -> EstimatorTrainer:
    """Make the trainer.

    Raises:
        InputError: data or rewards are not found, or given twice, or what the trainer refuses.
    """
    script, config, model = given.script, given.config, given.model
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    rewards = _rewards(script)
    data = _data(given)
    return given.trainer(
        model=model.model_name_or_path,
        reward_funcs=rewards,
        token_reward_funcs=[
            functions.find(name, "token_reward_funcs") for name in script.token_reward_funcs or []
        ],
        args=config,
        train_dataset=_split(data, script, "dataset_train_split"),
        eval_dataset=_split(data, script, "dataset_test_split") if config.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )


def _rewards(script: TrainArguments) -> list[str | Callable[..., Any]]:
    model = script.reward_model_name_or_path
    found: list[str | Callable[..., Any]] = [] if model is None else [model]
    builtin = functions.builtin_rewards()
    return found + [functions.find(name, "reward_funcs", builtin) for name in script.reward_funcs or []]


def _data(given: Arguments) -> Any:
    script, mixture = given.script, given.mixture
    if mixture.datasets and script.dataset_name:
        raise InputError(f"dataset_name={script.dataset_name!r} and datasets are both set; drop one")
    if mixture.datasets:
        return get_dataset(mixture)
    return load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)


def _split(data: Any, script: ScriptArguments, key: str) -> Any:
    name = getattr(script, key)
    if name not in data:
        raise InputError(f"{key}={name!r}: the data has {', '.join(data)}")
    columns = data[name].column_names
    if columns is not None and "prompt" not in columns:
        raise InputError(f"the data's {name} split has no column 'prompt', but {', '.join(columns)}")
    return data[name]


def _checkpoint(setting: str | None) -> str | bool | None:
    """``resume_from_checkpoint: true`` asks for the latest one; a command line has no other word for it."""
    return {"true": True, "false": False}.get(str(setting).lower(), setting)
