"""GPG: the group's mean as baseline, with the batch's dead groups made up for.

Source: Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, section 2, the
advantage with its normalisation F_norm and the gradient correction alpha (https://arxiv.org/abs/2504.02546v3).
"""

from typing import Any, Literal

import numpy as np
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_choice, check_range
from rl_estimators.registry import Estimate


@register_adv_est("gpg", source="https://arxiv.org/abs/2504.02546v3 section 2")
@compat(verl={"singleton": "raw", "dead": "zero_score", "alpha": None})
def gpg(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    f_norm: float = 1.0,
    alpha: float | None = None,
    singleton: Literal["zero", "raw"] = "zero",
    dead: Literal["equal_scores", "zero_score"] = "equal_scores",
) -> Estimate:
    r"""Centre scores within their group and raise them by the share of the batch that teaches nothing.

    .. math::
        s_b = \sum_t r_{bt}, \qquad
        A_{bt} = \alpha \, \frac{s_b - \mathrm{mean}_{g(b)}(s)}{F_{norm}}, \qquad
        \alpha = \frac{B}{B - M}

    with B the responses that count, and M those among them whose group has equal scores only. Their gradient is 0,
    yet they are counted in the loss's mean, which is thereby too small; :math:`\alpha` undoes that. A response that
    happens to score its group's mean is no part of M: its group is alive. Where no group is, B - M counts as 1.

    Departures from verl 0.9: verl's :math:`\alpha` divides B by the number of responses with a score other than 0,
    so that groups solved by every response count as alive and failed responses in a live group as dead, and its
    ``alpha`` argument is ignored; only rewards of valid tokens count; a group of one gets 0 and is part of M,
    where verl hands out the raw score. ``compat="verl"`` takes over verl's :math:`\alpha` and raw score, for the
    numbers a run with verl had; by the paper they are wrong.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        f_norm: Divides every advantage, in units of reward; at least 1e-12. ``grpo`` divides by the group's
            standard deviation instead.
        alpha: A fixed factor in place of B / (B - M); at least 0.
        singleton: What a group of one gets: ``"zero"``, or its ``"raw"`` score; it is part of M either way.
        dead: What M counts: responses of a group of ``"equal_scores"``, or with verl those of ``"zero_score"``.

    Returns:
        Advantages ``(B, T)``, and the same tensor as returns: GPG has no critic to train.

    Raises:
        InputError: f_norm below 1e-12, alpha below 0, an unknown ``singleton`` or ``dead``.
    """
    check_range("gpg", low=1e-12, f_norm=f_norm)
    check_range("gpg", alpha=alpha)
    check_choice("gpg", "singleton", singleton, ("zero", "raw"))
    check_choice("gpg", "dead", dead, ("equal_scores", "zero_score"))
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    centred = masked.group_centred(scores, ids, rows, singleton=singleton)
    if alpha is None:
        differ = masked.group_max(scores, ids, rows) > masked.group_min(scores, ids, rows)
        alive = rows & (differ if dead == "equal_scores" else scores != 0)
        centred = centred * (rows.sum() / alive.sum().clamp(min=1).to(scores.dtype))
    else:
        centred = centred * alpha
    advantages = masked.to_tokens(centred / f_norm, mask)
    return Estimate(advantages, advantages)
