"""What we rely on in TRL: its methods' signatures, the keys of its batches, its attributes. And the calls into it.

:class:`~rl_estimators.trl.trainer.EstimatorTrainer` overrides or calls what is listed here and nothing else that is
private. All of it is compared when a trainer is made, so that a release that moved something is named there and then.
"""

import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from rl_estimators.errors import PatchError

__all__ = ["RELEASES", "attention", "check", "check_attributes", "log_probs", "response_mask"]

RELEASES = ">=1.12,<2"
# Parameters by method, in order; a method may have more with defaults after them.
SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate": ("self", "prompts"),
    "_compute_loss": ("self", "model", "inputs"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_save_optimizer_and_scheduler": ("self", "output_dir"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_get_output_dir": ("self", "trial"),
    "_load_best_model": ("self",),
    "save_model": ("self", "output_dir", "_internal_call"),
    "get_decay_parameter_names": ("self", "model"),
    "get_optimizer_cls_and_kwargs": ("args", "model"),
    "create_scheduler": ("self", "num_training_steps", "optimizer"),
    "_get_per_token_logps_and_entropies": ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
    "_log_completion_extra": ("self", "column", "values"),
    "_log_metric": ("self", "name", "value"),
}
# Keywords that we call these methods with.
KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "_get_per_token_logps_and_entropies": ("batch_size", "compute_entropy", "compute_aux_loss"),
}
# String constants that the code of these methods must hold: keys of the batch that we read or replace.
KEYS: Mapping[str, tuple[str, ...]] = {
    "_generate_and_score_completions": (
        *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages"),
        *("num_items_in_batch", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"),
        "importance_sampling_ratio",
    ),
    "_compute_loss": ("advantages", "old_per_token_logps", "ref_per_token_logps", "tool_mask"),
}
# What a trainer has only while it trains, and the method whose code must read it.
WHILE_TRAINING: Mapping[str, tuple[str, ...]] = {"training_step": ("current_gradient_accumulation_steps",)}
ATTRIBUTES = (
    *(
        "num_generations",
        "num_generations_eval",
        "beta",
        "reward_weights",
        "reward_funcs",
        "max_completion_length",
    ),
    *("_metrics", "_logs", "_tokenizer", "_step", "use_vllm", "_pending_extra_logs", "_pending_metrics"),
    *("tools", "_is_vlm", "use_transformers_continuous_batching", "model_wrapped", "aux_loss_enabled"),
    *("router_aux_loss_coef", "num_iterations", "_buffered_inputs"),
    *("_log_completion_extra", "_log_metric", "environments"),
)
GENERATION = {True: ("vllm_generation",), False: ("generation_config", "generation_kwargs")}  # by use_vllm
# Inputs of the model beyond ids and attention, which TRL keeps in the batch under the same names.
_MODEL_INPUTS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


def check(trainer: type[GRPOTrainer] = GRPOTrainer) -> None:
    """Compare TRL's trainer with what we rely on.

    Raises:
        PatchError: something is not as it was reviewed; the message names each thing that changed.
    """
    changes = [*_signature_changes(trainer), *_key_changes(trainer), *_reading_changes(trainer)]
    if changes:
        raise PatchError(_message(changes))


def check_attributes(trainer: GRPOTrainer) -> None:
    """The same for what a trainer has only once it is made."""
    needed = ATTRIBUTES + GENERATION[bool(getattr(trainer, "use_vllm", False))]
    changes = [f"the attribute {name} is gone" for name in needed if not hasattr(trainer, name)]
    if changes:
        raise PatchError(_message(changes))


def response_mask(batch: Mapping[str, Any]) -> Tensor:
    """``(B, T)`` bool: the tokens that the policy wrote, without padding and tool output."""
    mask: Tensor = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def attention(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts and completions, ``(B, P + T)`` each."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)


def log_probs(
    trainer: GRPOTrainer,
    model: Any,
    batch: Mapping[str, Any],
    batch_size: int | None = None,
    entropy: bool = False,
    aux_loss: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """TRL's log-probabilities (nats) of the completions, ``(B, T)``; entropies and a MoE model's loss if asked for."""
    ids, mask = attention(batch)
    more = {name: batch[name] for name in _MODEL_INPUTS if batch.get(name) is not None}
    more.update(compute_entropy=entropy, compute_aux_loss=aux_loss)
    width = batch["completion_ids"].size(1)
    log_prob, entropies, aux = trainer._get_per_token_logps_and_entropies(
        model, ids, mask, width, batch_size=batch_size, **more
    )
    return log_prob, entropies, aux


def _signature_changes(trainer: type[GRPOTrainer]) -> Iterator[str]:
    for name, expected in SIGNATURES.items():
        method = getattr(trainer, name, None)
        if method is None:
            yield f"GRPOTrainer.{name} is gone"
            continue
        parameters = inspect.signature(method).parameters
        found = tuple(parameters)[: len(expected)]
        if _passes_on(parameters):  # as 1.14 does: by position what it has not named
            named = tuple(n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
            found = named[: len(expected)] + expected[len(named) :]
        added = [n for n, p in parameters.items() if n not in expected and p.default is p.empty and _named(p)]
        if found != expected or added:
            yield f"GRPOTrainer.{name}({', '.join(parameters)}), reviewed as ({', '.join(expected)})"

        for keyword in KEYWORDS.get(name, ()):
            if keyword not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                yield f"GRPOTrainer.{name} no longer takes {keyword}"


def _passes_on(parameters: Mapping[str, inspect.Parameter]) -> bool:
    kinds = {parameter.kind for parameter in parameters.values()}
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _key_changes(trainer: type[GRPOTrainer]) -> Iterator[str]:
    for name, keys in KEYS.items():
        method = inspect.unwrap(getattr(trainer, name, check))
        known = set(_strings(method.__code__))
        for key in keys:
            if key not in known:
                yield f"GRPOTrainer.{name} no longer mentions the batch's {key!r}"


def _reading_changes(trainer: type[GRPOTrainer]) -> Iterator[str]:
    for name, attributes in WHILE_TRAINING.items():
        code = inspect.unwrap(getattr(trainer, name, check)).__code__
        for attribute in attributes:
            if attribute not in code.co_names:
                yield f"GRPOTrainer.{name} no longer reads self.{attribute}"


def _strings(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (one for one in constant if isinstance(one, str))
        elif isinstance(constant, CodeType):
            yield from _strings(constant)


def _message(changes: list[str]) -> str:
    return (
        f"TRL {version('trl')} is not as reviewed (trl{RELEASES}):\n  "
        + "\n  ".join(changes)
        + "\nInstall a release that the README names, or a newer rl-estimators."
    )
