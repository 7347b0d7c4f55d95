"""What the engine accepts of verl's rollout and model configuration. Everything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rl_estimators.errors import InputError

__all__ = ["Options", "check", "server_name"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LOAD_FORMATS = ("dummy", "auto", "safetensors")
LOGPROBS_MODES = ("processed_logprobs", "raw_logprobs")

# Keys that would change what is generated, or what is asked of the engine, and their only accepted value.
ONLY: dict[str, object] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "data_parallel_size": 1,  # verl starts one replica for each training worker by itself
    "expert_parallel_size": 1,
    "repetition_penalty": 1.0,
    "full_determinism": False,  # rounding depends on the batch
    "quantization": None,
    "qat.enable": False,
    "mtp.enable": False,
    "enable_rollout_routing_replay": False,
    "disaggregation.enabled": False,
    "prometheus.enable": False,
    "scheduling_policy": "fcfs",
    "engine_kwargs.hf": None,
}
CHOICES = {"dtype": tuple(DTYPES), "load_format": LOAD_FORMATS, "logprobs_mode": LOGPROBS_MODES}
NO_LORA: dict[str, object] = {"lora_rank": 0, "lora.rank": 0, "lora_adapter_path": None}


@dataclass(frozen=True)
class Options:
    """The configuration as the engine uses it; lengths are in tokens."""

    dtype: torch.dtype
    load_format: str
    logprobs_mode: str
    seed: int
    max_num_seqs: int
    max_model_len: int
    prompt_length: int
    response_length: int
    ignore_eos: bool
    free_cache_engine: bool
    eos: frozenset[int]
    vocabulary: int  # ids from here on have no token behind them and are never drawn

    @classmethod
    def read(cls, config: Any, model_config: Any) -> Options:
        """Check verl's ``RolloutConfig`` and ``HFModelConfig`` and take what is needed.

        Raises:
            InputError: as `check`, or ``max_model_len`` exceeds what the model has positions for.
        """
        check(config, model_config)
        return cls(
            dtype=DTYPES[config.dtype],
            load_format=config.load_format,
            logprobs_mode=config.logprobs_mode,
            seed=config.seed,
            max_num_seqs=config.max_num_seqs,
            max_model_len=_max_model_len(config, model_config),
            prompt_length=config.prompt_length,
            response_length=config.response_length,
            ignore_eos=config.ignore_eos,
            free_cache_engine=config.free_cache_engine,
            eos=frozenset(_eos(model_config)),
            vocabulary=len(model_config.tokenizer),
        )


def check(config: Any, model_config: Any) -> None:
    """Refuse what this engine cannot honour.

    Raises:
        InputError: names every such key, its value, and what to set.
    """
    rollout, model = "actor_rollout_ref.rollout", "actor_rollout_ref.model"
    refused = [*_differing(config, ONLY, rollout), *_differing(model_config, NO_LORA, model)]
    for key, choices in CHOICES.items():
        value = _look_up(config, key)
        if value not in choices:
            refused.append(f"{rollout}.{key}={value} (set one of {', '.join(choices)})")
    if config.max_num_seqs < 1:
        refused.append(f"{rollout}.max_num_seqs={config.max_num_seqs} (set 1 or more)")
    if refused:
        raise InputError(
            f"rollout.name=hf cannot honour {'; '.join(refused)}. Change these, or choose another engine."
        )


def server_name(replica_rank: int) -> str:
    """The name under which Ray knows the server of this replica."""
    return f"hf_server_{replica_rank}_0"


def _differing(config: Any, accepted: dict[str, object], prefix: str) -> Iterator[str]:
    for key, wanted in accepted.items():
        value = _look_up(config, key)
        if (value or None) != (wanted or None):  # empty, 0, False and absent all mean "off"
            yield f"{prefix}.{key}={value} (set {'null' if wanted is None else wanted})"


def _look_up(config: Any, path: str) -> Any:
    """The value at a dotted path of nested configs or dictionaries; None where the path ends early."""
    for key in path.split("."):
        config = None if config is None else config.get(key)
    return config


def _max_model_len(config: Any, model_config: Any) -> int:
    positions = int(model_config.hf_config.get_text_config().max_position_embeddings)
    wanted = config.max_model_len
    if wanted is not None and wanted > positions:
        raise InputError(
            f"actor_rollout_ref.rollout.max_model_len={wanted} exceeds the model's "
            f"max_position_embeddings={positions}; set it to that or less"
        )
    return positions if wanted is None else int(wanted)


def _eos(model_config: Any) -> Iterator[int]:
    """The ids that end a response: the tokenizer's, and those of the model's generation config."""
    generation = getattr(model_config.generation_config, "eos_token_id", None)
    for ids in (model_config.tokenizer.eos_token_id, generation):
        if ids is not None:
            yield from [ids] if isinstance(ids, int) else ids
