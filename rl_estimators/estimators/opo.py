"""OPO: the group's mean weighted by length as baseline.

Source: Hao et al., On-Policy RL with Optimal Reward Baseline, section 3.2
(https://arxiv.org/abs/2505.23585v2).
"""

from typing import Any, Literal

import numpy as np
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_choice
from rl_estimators.registry import Estimate


@register_adv_est("opo", source="https://arxiv.org/abs/2505.23585v2 section 3.2")
@compat(verl={"singleton": "raw"})
def opo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    singleton: Literal["zero", "raw"] = "zero",
) -> Estimate:
    r"""Subtract from a response's score its group's mean score, in which long responses weigh more.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = s_b - \frac{\sum_{c \in g(b)} l_c s_c}{\sum_{c \in g(b)} l_c}

    with :math:`l_c` the number of valid tokens of response c. The baseline of least variance weighs each score by
    its squared gradient norm, which grows with length if tokens' gradients are orthogonal and of equal norm. The
    paper's derivation holds on policy: one update per batch of rollouts.

    Departures from verl 0.9: only rewards of valid tokens count; a group whose scores are all equal gets exactly 0;
    a group of one gets 0, as its baseline is its own score, where verl hands out the raw score (``compat="verl"``).

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        singleton: What a group of one gets: ``"zero"``, or its ``"raw"`` score.

    Returns:
        Advantages ``(B, T)`` in units of reward, and the same tensor as returns: OPO has no critic to train.

    Raises:
        InputError: an unknown ``singleton``.
    """
    check_choice("opo", "singleton", singleton, ("zero", "raw"))
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    centred = masked.group_centred(scores, ids, rows, weights=mask.sum(-1), singleton=singleton)
    advantages = masked.to_tokens(centred, mask)
    return Estimate(advantages, advantages)
