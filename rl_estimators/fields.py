"""The vocabulary: every input an estimator or a loss may ask for by naming a parameter after it.

``B`` counts responses, ``T`` response tokens (right-padded). One name has one shape and one meaning
everywhere; the names are verl's. What a parameter's name says it needs, :func:`check` verifies.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl_estimators.errors import InputError
from rl_estimators.hints import did_you_mean

__all__ = [
    "FIELDS",
    "SETTINGS",
    "Field",
    "as_index",
    "check",
    "check_choice",
    "check_ddof",
    "check_number",
    "check_positive",
    "check_range",
    "is_number",
]


@dataclass(frozen=True)
class Field:
    """One input.

    Attributes:
        dims: Names of its dimensions, ``B``, ``T`` or ``K`` (rewards of a response); empty for what is passed on unseen.
        kind: ``float``; ``mask`` (bool, or 0/1 in any dtype); ``index`` (names of groups); ``any``.
        meaning: What it holds.
        verl: How a verl user supplies it.
        trl: How a TRL user supplies it.
    """

    dims: tuple[str, ...]
    kind: Literal["float", "mask", "index", "any"]
    meaning: str
    verl: str
    trl: str


_BT = ("B", "T")
_ALWAYS = "always there"
FIELDS: Mapping[str, Field] = {
    "token_level_rewards": Field(_BT, "float", "reward of each token", _ALWAYS, _ALWAYS),
    "response_mask": Field(_BT, "mask", "1 on the tokens the policy wrote, 0 elsewhere", _ALWAYS, _ALWAYS),
    "index": Field(
        ("B",), "index", "which prompt each response answers", "the batch's `uid`, always there",
        "a prompt's `num_generations` completions, always there",
    ),
    "values": Field(
        _BT, "float", "the critic's value before each token",
        "`critic.enable=True`, or leave it unset: asking for values switches the critic on",
        "nothing: asking for values makes the trainer keep a critic",
    ),
    "truncated": Field(
        ("B",), "mask", "1 on responses that were cut off, by a length limit say, and 0 on finished ones",
        "`+rl_estimators.bootstrap_truncated=True`; with `trainer.use_v1=False` a column of that name in the batch is "
        "taken instead",
        "`bootstrap_truncated=True`, with an estimator that asks for values",
    ),
    "bootstrap_values": Field(
        ("B",), "float", "the critic's value of the state after each response's last token; read where `truncated`",
        "`+rl_estimators.bootstrap_truncated=True`; with `trainer.use_v1=False` a column of that name in the batch is "
        "taken instead",
        "`bootstrap_truncated=True`, with an estimator that asks for values",
    ),
    "reward_baselines": Field(
        ("B",), "float", "reward of the prompt's greedy response",
        "nothing: asking for them makes the v1 trainer decode greedily (not with `trainer.use_v1=False`)",
        "nothing: asking for them makes the trainer decode each prompt greedily, too",
    ),
    "reward_components": Field(
        ("B", "K"), "float", "each response's K rewards, before they are weighed and summed",
        "`+algorithm.adv_estimator_kwargs.reward_keys=[NAME,...]`: the names under which the reward function returns "
        "them, in a dictionary beside its `score`",
        "the rewards of each of `reward_funcs`, always there",
    ),
    "old_log_probs": Field(
        _BT, "float", "log-probabilities under the policy before the update",
        "always there", "always there; a forward pass more, if TRL has not computed them",
    ),
    "ref_log_prob": Field(
        _BT, "float", "log-probabilities under the reference policy",
        "`algorithm.use_kl_in_reward=True` or `actor_rollout_ref.actor.use_kl_loss=True`", "`beta` other than 0",
    ),
    "rollout_log_probs": Field(
        _BT, "float", "log-probabilities under the policy that sampled",
        "`actor_rollout_ref.rollout.calculate_log_probs=True`", "`use_vllm=True`",
    ),
    "rollout_is_weights": Field(
        _BT, "float", "importance weights from the sampling policy to the old one",
        "`algorithm.rollout_correction.rollout_is` and `rollout.calculate_log_probs=True`", "`use_vllm=True` with `vllm_importance_sampling_correction=True`, for policy losses",
    ),
    "sum_pi_squared": Field(
        _BT, "float", "sum over the vocabulary of the squared probabilities",
        "`actor_rollout_ref.actor.calculate_sum_pi_squared=True` and `trainer.use_v1=False`", "not available",
    ),
    "old_log_prob": Field(
        _BT, "float", "log-probabilities under the policy before the update", _ALWAYS, _ALWAYS
    ),
    "log_prob": Field(
        _BT, "float", "log-probabilities under the policy in training, with their gradient", _ALWAYS, _ALWAYS
    ),
    "advantages": Field(_BT, "float", "advantage of each token", _ALWAYS, _ALWAYS),
    "returns": Field(_BT, "float", "the critic's target for each token", "with a critic", "with a critic"),
    "vpreds": Field(
        _BT, "float", "the critic's values in training, with their gradient", "with a critic", "with a critic"
    ),
    "batch": Field((), "any", "verl's tensors of the batch", _ALWAYS, "not available"),
    "non_tensor_batch": Field(
        (), "any", "verl's other columns of the batch", _ALWAYS, "not available"
    ),
}  # fmt: skip

# What every framework's configuration has: a parameter of that name needs no default.
SETTINGS: Mapping[str, Any] = {"gamma": 1.0, "lam": 1.0, "loss_agg_mode": "token-mean"}


def check(owner: str, inputs: Mapping[str, Any], required: Iterable[str]) -> None:
    """Refuse inputs that are incomplete or do not fit each other.

    Raises:
        InputError: an input is missing, is no tensor, or has a wrong dtype, number of dimensions or size.
    """
    missing = [name for name in required if name not in inputs]
    if missing:
        lines = [f"  {name}: {FIELDS[name].meaning}" + _supply(FIELDS[name]) for name in missing]
        raise InputError(f"{owner} is missing {', '.join(missing)}\n" + "\n".join(lines))
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in inputs.items():
        if not FIELDS[name].dims:
            continue
        for dim, size in zip(FIELDS[name].dims, _shape(owner, name, value), strict=True):
            known, first = sizes.setdefault(dim, (size, name))
            if size != known:
                raise InputError(f"{owner}: {name} has {dim}={size}, but {first} has {dim}={known}")


def as_index(index: "np.ndarray[Any, Any] | Sequence[Any] | Tensor") -> "np.ndarray[Any, Any]":
    """Names of groups as a 1-d numpy array: of objects from a list, of integers from a tensor."""
    if isinstance(index, Tensor):
        return index.detach().cpu().numpy().copy()  # a function may write into what it gets
    if isinstance(index, np.ndarray):
        return index
    names = (name.item() if isinstance(name, Tensor) else name for name in index)  # tensors hash by identity
    return np.fromiter(names, dtype=object, count=len(index))


def is_number(value: object) -> bool:
    """Whether it is one real number: a tensor of one element is, a bool is not."""
    if isinstance(value, (int, float, np.integer, np.floating)):  # first: the look at a tensor takes long
        return not isinstance(value, bool)
    if not isinstance(value, Tensor):
        return False
    return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool


def check_number(owner: str, **options: object) -> None:
    """Refuse an option that is no number. No value is read: on a device that would stall it.

    Raises:
        InputError: names the option and its value.
    """
    for name, value in options.items():
        if not is_number(value):
            # a KL controller, say, in place of its factor
            hint = "; pass its .value" if hasattr(value, "value") else ""
            raise InputError(f"{owner}: {name} is {value!r}, expected a number{hint}")


def check_range(owner: str, low: float = 0.0, high: float = float("inf"), **options: float | None) -> None:
    """Refuse an option outside ``[low, high]``; None passes.

    Raises:
        InputError: it is no number, or outside; names the option, its value and the range.
    """
    for name, value in options.items():
        if value is None:
            continue
        if not is_number(value):  # asked first: the call alone costs more than the rest
            check_number(owner, **{name: value})
        if not low <= value <= high:
            raise InputError(f"{owner}: {name} is {value!r}, expected a number in [{low:g}, {high:g}]")


def check_positive(owner: str, **options: Any) -> None:
    """Refuse an option that is not above 0.

    Raises:
        InputError: it is no number, or not above 0; names the option and its value.
    """
    check_number(owner, **options)
    for name, value in options.items():
        if not value > 0:
            raise InputError(f"{owner}: {name} is {value!r}, expected a number above 0")


def check_ddof(owner: str, ddof: object) -> None:
    """Refuse a ``ddof`` that is neither of the two there are.

    Raises:
        InputError: names its value.
    """
    check_number(owner, ddof=ddof)
    if ddof not in (0, 1):
        raise InputError(f"{owner}: ddof is {ddof!r}, expected 0 or 1")


def check_choice(owner: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse an option that is none of ``choices``.

    Raises:
        InputError: names the option, its value and the choices.
    """
    if value not in tuple(choices):
        hint = did_you_mean(str(value), choices)
        raise InputError(f"{owner}: {name} is {value!r}, expected one of {', '.join(choices)}.{hint}")


def _supply(field: Field) -> str:
    return f"\n    in verl: {field.verl}\n    in TRL: {field.trl}"


def _shape(owner: str, name: str, value: Any) -> tuple[int, ...]:
    field = FIELDS[name]
    if field.kind == "index" and isinstance(value, (np.ndarray, list, tuple)):
        value = as_index(value)
        dtype_fits = value.dtype.kind in "OUSiu"
        expected = "strings or integers"
    elif not isinstance(value, Tensor):
        also = ", a numpy array or a list" if field.kind == "index" else ""
        raise InputError(f"{owner}: {name} has type {type(value).__name__}, expected a torch.Tensor{also}")
    elif field.kind == "float":
        dtype_fits, expected = value.is_floating_point(), "a floating dtype"
    elif field.kind == "index":
        odd = value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        dtype_fits, expected = not odd, "integers"
    else:
        dtype_fits, expected = _is_mask(value), "bool, or 0 and 1 in an integer or floating dtype"
    if not dtype_fits:
        raise InputError(
            f"{owner}: {name} has dtype {value.dtype}{_odd_value(field, value)}, expected {expected}"
        )
    if value.ndim != len(field.dims):
        dims = ", ".join(field.dims) + ("," if len(field.dims) == 1 else "")
        raise InputError(f"{owner}: {name} has shape {tuple(value.shape)}, expected ({dims})")
    return tuple(value.shape)


def _is_mask(mask: Tensor) -> bool:
    """Values are looked at on the CPU only: elsewhere the look would stall the device."""
    if mask.dtype == torch.bool or not mask.is_cpu:
        return not mask.is_complex()
    if mask.is_complex():
        return False
    if not mask.is_floating_point() and mask.numel():  # one reading of what may be 64 MiB in place of four
        low, high = mask.aminmax()
        return bool(low >= 0) and bool(high <= 1)
    return bool(((mask == 0) | (mask == 1)).all())


def _odd_value(field: Field, mask: Any) -> str:
    """The first value of a mask that is neither 0 nor 1, for the message."""
    if field.kind != "mask" or mask.is_complex():
        return ""
    return f" and holds {mask[(mask != 0) & (mask != 1)][0].item()!r}"
