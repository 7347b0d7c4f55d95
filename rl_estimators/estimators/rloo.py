"""RLOO: the mean of the prompt's other samples, the response itself left out, as baseline.

Source: Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
in LLMs, section 2.3 (https://arxiv.org/abs/2402.14740).
"""

from typing import Any, Literal

import numpy as np
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_choice
from rl_estimators.registry import Estimate


@register_adv_est("rloo", source="https://arxiv.org/abs/2402.14740 section 2.3")
@compat(verl={"singleton": "raw"}, trl={"singleton": "zero"})
def rloo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    singleton: Literal["zero", "raw"] = "zero",
) -> Estimate:
    r"""Subtract from a response's score the mean score of its siblings.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = s_b - \frac{1}{n - 1} \sum_{c \in g(b),\, c \ne b} s_c = \frac{n}{n - 1} (s_b - \bar s_{g(b)})

    over the n responses that share b's group g(b). The baseline is independent of the response, so the gradient is
    unbiased; ``grpo`` without its division is the same, but for the factor :math:`(n - 1) / n`.

    Departures from verl 0.9: only rewards of valid tokens count; a group whose scores are all equal gets exactly 0,
    where verl has a rounding error; a group of one gets 0, where verl's ``rloo`` hands out the raw score (its
    ``rloo_vectorized`` gives 0); groups are told apart as Python objects, never by number or text.

    ``compat="verl"`` gives the numbers of verl's ``rloo``; ``compat="trl"`` those of TRL 1.16's ``RLOOTrainer``
    without its ``normalize_advantages``, which the defaults give as well.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        singleton: What a group of one gets: ``"zero"``, or its ``"raw"`` score.

    Returns:
        Advantages ``(B, T)`` in units of reward, and the same tensor as returns: RLOO has no critic to train.

    Raises:
        InputError: an unknown ``singleton``.
    """
    check_choice("rloo", "singleton", singleton, ("zero", "raw"))
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    advantages = masked.to_tokens(masked.group_ahead_of_others(scores, ids, rows, singleton), mask)
    return Estimate(advantages, advantages)
