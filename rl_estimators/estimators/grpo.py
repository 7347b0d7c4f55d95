"""GRPO: the mean of the prompt's samples as baseline, their spread as scale.

Source: Shao et al., DeepSeekMath, section 4.1.2, outcome supervision (https://arxiv.org/abs/2402.03300).
Without the division it is the advantage of Dr. GRPO (Liu et al., https://arxiv.org/abs/2503.20783).
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.errors import InputError
from rl_estimators.fields import check_choice, check_range
from rl_estimators.registry import Estimate

_DEFAULTS = {"epsilon": 1e-6, "singleton": "zero"}
_COMPAT: dict[str, dict[str, Any]] = {"verl": {"singleton": "raw"}, "trl": {"epsilon": 1e-4}}


@register_adv_est("grpo", source="https://arxiv.org/abs/2402.03300 section 4.1.2")
def grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
    singleton: Literal["zero", "raw"] = "zero",
    compat: Literal["verl", "trl"] | None = None,
) -> Estimate:
    r"""Give every token of a response the response's standing among its siblings.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = \frac{s_b - \mathrm{mean}_{g(b)}(s)}{\mathrm{std}_{g(b)}(s) + \epsilon}

    with the unbiased standard deviation over the responses that share b's group g(b).

    Departures from verl 0.9: only rewards of valid tokens count; a group whose scores are all equal gets exactly
    0, where verl's rounding errors over epsilon reach 1; a group of one gets 0, as nothing is known about how it
    compares, where verl hands out the raw score; groups are told apart as Python objects, never by number or text.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        norm_by_std: Divide by the group's standard deviation.
        epsilon: Added to the standard deviation, in units of reward; at least 0.
        singleton: What a group of one gets: ``"zero"``, or verl's ``"raw"`` score (over 1 + epsilon).
        compat: In place of the defaults of the two options above take another library's, for the numbers a run with
            it had: ``"verl"`` 0.9: 1e-6 and raw; ``"trl"`` 1.16: 1e-4 and zero. Its rewards of masked tokens and its rounding errors on
            equal scores are not taken over. TRL's ``scale_rewards="none"`` is ``norm_by_std=False``.

    Returns:
        Advantages ``(B, T)``, and the same tensor as returns: GRPO has no critic to train.

    Raises:
        InputError: epsilon below 0, an unknown ``singleton`` or ``compat``, or one that contradicts ``compat``.
    """
    if compat is not None:
        epsilon, singleton = _of_library(compat, epsilon=epsilon, singleton=singleton)
    check_range("grpo", epsilon=epsilon)
    check_choice("grpo", "singleton", singleton, ("zero", "raw"))
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    centred, std, size = masked.group_moments(scores, ids, rows)
    if singleton == "raw":
        alone = rows & (size == 1)
        centred, std = torch.where(alone, scores, centred), torch.where(alone, 1.0, std)
    if norm_by_std:
        centred = torch.where(std > 0, centred / (std + epsilon), 0)
    advantages = masked.to_tokens(centred, mask)
    return Estimate(advantages, advantages)


def _of_library(compat: str, **given: Any) -> tuple[Any, ...]:
    """The library's options, if nothing else was asked for."""
    check_choice("grpo", "compat", compat, _COMPAT)
    theirs = {**_DEFAULTS, **_COMPAT[compat]}
    for name, value in given.items():
        if value not in (_DEFAULTS[name], theirs[name]):
            raise InputError(
                f"grpo: {name}={value!r} contradicts compat={compat!r}, which has {theirs[name]!r}; drop one"
            )
    return tuple(theirs[name] for name in given)
