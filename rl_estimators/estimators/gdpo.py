"""GDPO: each of several rewards normalised within the group on its own, then their sum over the batch.

Source: Liu et al., GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization,
section 3.1, eq. 4-6, and for the weights section 3.2, eq. 7 (https://arxiv.org/abs/2601.05242).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.errors import InputError
from rl_estimators.fields import check_choice, check_ddof, check_range, is_number
from rl_estimators.registry import Estimate
from rl_estimators.whitening import STANDARD, Whitening, normalise_centred, read_whitening

_ONE = {"ddof": 1}
_VERL = {"norm_level": "token", "epsilon": 1e-6, "singleton": "raw", "whitening": STANDARD, **_ONE}
_TRL_WHITENING = Whitening(eps=1e-4, eps_in="std")
_TRL = {"norm_level": "sequence", "epsilon": 1e-4, "singleton": "zero", "whitening": _TRL_WHITENING, **_ONE}


@register_adv_est("gdpo", source="https://arxiv.org/abs/2601.05242 section 3.1")
@compat(verl=_VERL, trl=_TRL)
def gdpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    reward_components: Tensor | None = None,
    non_tensor_batch: Mapping[str, Any] | None = None,
    reward_keys: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
    norm_level: Literal["sequence", "token"] = "sequence",
    ddof: int = 1,
    singleton: Literal["zero", "raw"] = "zero",
    whitening: Whitening | Mapping[str, Any] = STANDARD,
) -> Estimate:
    r"""Add up a response's standings among its siblings, one for each reward, and normalise the sums over the batch.

    .. math::
        a_{bk} = \frac{r_{bk} - \mathrm{mean}_{g(b)}(r_k)}{\mathrm{std}_{g(b)}(r_k) + \epsilon}, \qquad
        a_b = \sum_k w_k a_{bk}, \qquad
        A_{bt} = \frac{a_b - \mathrm{mean}(a)}{\sqrt{\mathrm{var}(a) + 10^{-8}}}

    with unbiased deviations (``ddof=1``) and variance. Where GRPO sums first, a group tells apart sums only, and the
    reward with the largest spread decides.

    The paper adds no epsilon to a group's deviation and its own to the batch's, ``whitening={"eps_in": "std"}``. The
    batch's mean and variance run over responses, as in the paper; ``norm_level="token"`` counts a response once
    per valid token, as verl does, which gives responses that tie with all their siblings a small number in place of
    0. A reward that is equal all over a group adds exactly 0 there. A response with a reward that is not finite
    among its components is left out of all of them; TRL leaves out the component only. A group of one adds 0, where
    verl adds its raw rewards. verl falls back on the summed reward if it is given no components; here that is an
    error. The token-level rewards are not read, other than to leave out responses where they are not finite: a KL
    penalty in the reward has no effect.

    ``compat="verl"`` gives verl 0.9's numbers and ``compat="trl"`` those of TRL 1.16's
    ``multi_objective_aggregation="normalize_then_sum"``, where every reward is finite.

    Args:
        token_level_rewards: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        reward_components: ``(B, K)`` the K rewards of each response, each in units of its own.
        non_tensor_batch: verl's columns, from which ``reward_keys`` are taken if there are no components.
        reward_keys: Names of the K columns.
        weights: K weights; 1 each by default.
        norm_by_std: Divide by the group's standard deviation.
        epsilon: Added to the standard deviation, in units of the reward; at least 0.
        norm_level: What is normalised over the batch: ``"sequence"`` or ``"token"``.
        ddof: 1 for the groups' unbiased standard deviation, 0 for the one of the sample.
        singleton: What a group of one adds: ``"zero"``, or its ``"raw"`` reward (over 1 + epsilon).
        whitening: How the batch is normalised, where frameworks differ: see
            :class:`~rl_estimators.whitening.Whitening`; its weighting is ``norm_level`` here.

    Returns:
        Advantages ``(B, T)``, and the same tensor as returns: there is no critic to train.

    Raises:
        InputError: epsilon below 0, ddof neither 0 nor 1, an unknown ``norm_level`` or ``singleton``, a ``whitening``
            that does not fit, no components, a column that is not there or holds no numbers, or another number of weights than of components.
    """
    check_range("gdpo", epsilon=epsilon)
    check_ddof("gdpo", ddof)
    check_choice("gdpo", "norm_level", norm_level, ("sequence", "token"))
    check_choice("gdpo", "singleton", singleton, ("zero", "raw"))
    how = read_whitening("gdpo", whitening, weighting_is="norm_level")
    components = _components(reward_components, non_tensor_batch, reward_keys, token_level_rewards)
    weighs = _weights(weights, components)
    wide = torch.float64 if torch.float64 in (components.dtype, token_level_rewards.dtype) else torch.float32
    components = components.to(wide)
    _, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index, components.sum(-1))
    total = torch.zeros(len(rows), dtype=wide, device=rows.device)
    for component, weight in zip(components.unbind(-1), weighs, strict=True):
        moments = masked.group_moments(component, ids, rows, ddof, singleton)
        total = total + weight * (masked.over_std(moments, epsilon) if norm_by_std else moments.centred)
    advantages = normalise_centred(total, rows, mask, norm_level, how, singleton)
    return Estimate(advantages, advantages)


def _components(
    given: Tensor | None, columns: Mapping[str, Any] | None, keys: Sequence[str], rewards: Tensor
) -> Tensor:
    """The ``(B, K)`` rewards, from wherever they come."""
    if given is not None:
        if keys:
            raise InputError("gdpo: reward_components and reward_keys are both given; keep one")
        if given.shape[-1] == 0:
            raise InputError("gdpo: reward_components has K=0, expected at least one reward")
        return given
    if not keys or columns is None:
        raise InputError(
            "gdpo needs rewards to take apart: pass reward_components, (B, K), or in verl name the columns in which "
            "the reward function returns them, +algorithm.adv_estimator_kwargs.reward_keys=[NAME,...]"
        )
    return stack_columns("gdpo", keys, columns, rewards)


def stack_columns(owner: str, keys: Sequence[str], columns: Mapping[str, Any], like: Tensor) -> Tensor:
    """Columns of verl's batch as components ``(B, K)``, in fp32 or wider and on the device of ``like``.

    Args:
        owner: Whom a message is to name.
        keys: Names of the K columns.
        columns: The columns by name, ``(B,)`` each.
        like: The ``(B, T)`` rewards.

    Raises:
        InputError: the names are no list, there is no such column, or it holds what is no number or of another shape.
    """
    if isinstance(keys, str) or not isinstance(keys, Iterable):  # a string would be read letter by letter
        raise InputError(f"{owner}: reward_keys is {keys!r}, expected a list of names of columns")
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.stack([_column(owner, key, columns, len(like)) for key in keys], dim=-1).to(
        like.device, wide
    )


def _column(owner: str, key: str, columns: Mapping[str, Any], rows: int) -> Tensor:
    check_choice(owner, "a name in reward_keys", key, sorted(columns))
    try:
        column = np.asarray(columns[key]).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: column {key!r} holds what is no number: {error}") from error
    if column.shape != (rows,):
        raise InputError(f"{owner}: column {key!r} has shape {column.shape}, expected ({rows},)")
    return torch.from_numpy(column)


def _weights(weights: Sequence[float] | None, components: Tensor) -> list[float]:
    number = components.shape[-1]
    if weights is None:
        return [1.0] * number
    try:
        given: Any = [*weights]
    except TypeError:  # a number by itself
        given = weights
    listed = isinstance(given, list) and len(given) == number
    if not listed or not all(is_number(weight) and math.isfinite(weight) for weight in given):
        raise InputError(f"gdpo: weights is {given!r}, expected {number} finite numbers, one for each reward")
    return [float(weight) for weight in given]
