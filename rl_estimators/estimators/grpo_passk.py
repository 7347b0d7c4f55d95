"""GRPO for pass@k: only the best of k responses, by how much it is ahead of the second.

Source: Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement Learning, the
leave-one-out estimator for pass@k, unbiased by lemma 1 (https://arxiv.org/abs/2503.19595v2); the name and the
division by the standard deviation are verl's.
"""

from typing import Any

import numpy as np
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_ddof, check_range
from rl_estimators.registry import Estimate


@register_adv_est("grpo_passk", source="https://arxiv.org/abs/2503.19595v2 lemma 1")
@compat(verl={"epsilon": 1e-6, "ddof": 1})
def grpo_passk(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    norm_by_std: bool = True,
    epsilon: float = 1e-6,
    ddof: int = 1,
) -> Estimate:
    r"""Credit a response with what its group's best score would lose without it.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = \frac{\max_{c \in g(b)} s_c - \max_{c \in g(b),\, c \ne b} s_c}{\mathrm{std}_{g(b)}(s) + \epsilon}

    with the unbiased standard deviation (``ddof=1``). The numerator is the best score minus the second for the only best response
    of a group and 0 for every other: k samples are judged by their best, and the baseline is the best of the others.
    With scores of 0 and 1 only a response that alone solves its prompt gets anything.

    The division is verl's, as in ``grpo``; the paper's estimator is ``norm_by_std=False``. Departures from verl 0.9:
    only rewards of valid tokens count; a group of one gets 0, where verl raises. Elsewhere the defaults give verl's
    numbers; ``compat="verl"`` refuses options that would not.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        norm_by_std: Divide by the group's standard deviation.
        epsilon: Added to the standard deviation, in units of reward; at least 0.
        ddof: 1 for the unbiased standard deviation, 0 for the one of the sample.

    Returns:
        Advantages ``(B, T)``, at least 0, and the same tensor as returns: there is no critic to train.

    Raises:
        InputError: epsilon below 0, or ddof neither 0 nor 1.
    """
    check_range("grpo_passk", epsilon=epsilon)
    check_ddof("grpo_passk", ddof)
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    lead = masked.group_lead(scores, ids, rows)
    if norm_by_std:
        lead = masked.over_std(masked.group_moments(scores, ids, rows, ddof)._replace(centred=lead), epsilon)
    advantages = masked.to_tokens(lead, mask)
    return Estimate(advantages, advantages)
