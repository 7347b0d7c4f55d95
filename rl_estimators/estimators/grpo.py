"""GRPO: the mean of the prompt's samples as baseline, their spread as scale.

Source: Shao et al., DeepSeekMath, section 4.1.2, outcome supervision (https://arxiv.org/abs/2402.03300).
Without the division it is the advantage of Dr. GRPO (Liu et al., https://arxiv.org/abs/2503.20783).
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl_estimators import backends, masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.errors import InputError
from rl_estimators.estimators import trl_arithmetic
from rl_estimators.fields import check_choice, check_ddof, check_range
from rl_estimators.registry import Estimate


@register_adv_est("grpo", source="https://arxiv.org/abs/2402.03300 section 4.1.2")
@compat(
    verl={"epsilon": 1e-6, "singleton": "raw", "ddof": 1, "arithmetic": "pivot"},
    trl={"epsilon": 1e-4, "singleton": "zero", "ddof": 1, "arithmetic": "trl"},
)
def grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    norm_by_std: bool = True,
    std_over: Literal["group", "batch"] = "group",
    epsilon: float = 1e-6,
    singleton: Literal["zero", "raw"] = "zero",
    ddof: int = 1,
    arithmetic: Literal["pivot", "trl"] = "pivot",
) -> Estimate:
    r"""Give every token of a response the response's standing among its siblings.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = \frac{s_b - \mathrm{mean}_{g(b)}(s)}{\mathrm{std}_{g(b)}(s) + \epsilon}

    with the unbiased standard deviation (``ddof=1``) over the responses that share b's group g(b).

    Departures from verl 0.9: only rewards of valid tokens count; a group whose scores are all equal gets exactly
    0, where verl's rounding errors over epsilon reach 1; a group of one gets 0, as nothing is known about how it
    compares, where verl hands out the raw score; groups are told apart as Python objects, never by number or text.

    ``compat="verl"`` gives verl 0.9's numbers without its rounding errors on equal scores. ``compat="trl"`` gives
    those of TRL 1.16's ``GRPOTrainer`` to the bit, rounding errors on equal scores included; ``norm_by_std=False`` is
    its ``scale_rewards="none"``.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        norm_by_std: Divide by a standard deviation.
        std_over: Of whose scores: those of the group, or those of the whole batch, as Liu et al. have it in Tricks
            or Traps (https://arxiv.org/abs/2508.08221) and TRL with ``scale_rewards="batch"``.
        epsilon: Added to the standard deviation, in units of reward; at least 0.
        singleton: What a group of one gets: ``"zero"``, or verl's ``"raw"`` score (over 1 + epsilon).
        ddof: 1 for the unbiased standard deviation, 0 for the one of the sample.
        arithmetic: ``"pivot"``: equal scores differ by exactly 0; ``"trl"``: the order of operations of TRL, see
            :mod:`rl_estimators.estimators.trl_arithmetic`.

    Returns:
        Advantages ``(B, T)``, and the same tensor as returns: GRPO has no critic to train.

    Raises:
        InputError: epsilon below 0, ddof neither 0 nor 1, an unknown ``std_over``, ``singleton`` or ``arithmetic``,
            ``std_over="batch"`` with ``norm_by_std=False``, or ``singleton="raw"`` with TRL's arithmetic, which has no such
            thing.
    """
    check_range("grpo", epsilon=epsilon)
    check_ddof("grpo", ddof)
    check_choice("grpo", "std_over", std_over, ("group", "batch"))
    check_choice("grpo", "singleton", singleton, ("zero", "raw"))
    check_choice("grpo", "arithmetic", arithmetic, ("pivot", "trl"))
    if std_over == "batch" and not norm_by_std:
        raise InputError(
            "grpo: std_over='batch' with norm_by_std=False, which divides by nothing; drop one of them"
        )
    read = backends.scores(token_level_rewards, response_mask)
    scores, ids, rows = masked.scored_rows(read, token_level_rewards, index)
    if arithmetic == "trl":
        check_choice("grpo with arithmetic='trl'", "singleton", singleton, ("zero",))
        numbers = trl_arithmetic.group_advantages(
            scores, ids, rows, epsilon if norm_by_std else None, ddof, std_over
        )
        advantages = masked.to_tokens(numbers, response_mask, read)
        return Estimate(advantages, advantages)
    moments = masked.group_moments(scores, ids, rows, ddof, singleton)
    if std_over == "batch":
        std = masked.group_moments(scores, torch.zeros_like(ids), rows, ddof).std
        if singleton == "raw":  # a group of one has its raw score over 1
            std = torch.where(masked.alone(ids, rows), moments.std, std)
        moments = moments._replace(std=std)
    numbers = masked.over_std(moments, epsilon) if norm_by_std else moments.centred
    advantages = masked.to_tokens(numbers, response_mask, read)  # 0 in a response that does not count
    return Estimate(advantages, advantages)
