"""REINFORCE++ with baseline: the group's mean as baseline, the batch's standard deviation as scale.

Source: Hu et al., REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Normalization, v9,
section 3.2 (https://arxiv.org/abs/2501.03262v9).
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from rl_estimators import masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check_choice
from rl_estimators.registry import Estimate
from rl_estimators.whitening import STANDARD, Whitening, normalise_centred, read_whitening


@register_adv_est("reinforce_pp_baseline", source="https://arxiv.org/abs/2501.03262v9 section 3.2")
@compat(verl={"norm_level": "token", "singleton": "raw", "whitening": STANDARD})
def reinforce_pp_baseline(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: "np.ndarray[Any, Any] | list[Any] | Tensor",
    norm_level: Literal["token", "sequence"] = "token",
    singleton: Literal["zero", "raw"] = "zero",
    whitening: Whitening | Mapping[str, Any] = STANDARD,
) -> Estimate:
    r"""Centre scores within their group, then normalise them over the global batch.

    .. math::
        s_b = \sum_t r_{bt}, \qquad a_b = s_b - \mathrm{mean}_{g(b)}(s), \qquad
        A_{bt} = \frac{a_b - \mathrm{mean}(a)}{\sqrt{\mathrm{var}(a) + 10^{-8}}}

    The group's mean takes difficulty away; the scale is shared, so that a group of nearly equal scores is not
    blown up as in ``grpo``. Mean and variance (unbiased) run

    - with ``"token"`` over the valid tokens of the batch, a response counting once per token: so does the paper's
      eq. 5, whose advantages carry a token's index, and so does verl. The mean is then not 0 but tilted to long
      responses, and a group whose scores are all equal gets minus that mean over the scale;
    - with ``"sequence"`` over responses, each counting once. The mean is 0, and such a group gets exactly 0.

    Departures from verl's ``reinforce_plus_plus_baseline``: only rewards of valid tokens count; a group of one
    has a = 0, where verl has its raw score; a batch of groups that are equal inside gets exactly 0, where verl
    amplifies rounding errors. ``compat="verl"`` hands out the raw score as well.

    Args:
        token_level_rewards: ``(B, T)``; only the sum over a response's valid tokens matters.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        index: ``(B,)`` the prompt of each response, in any order: numpy array, list or integer tensor.
        norm_level: What is normalised over the batch: ``"token"`` or ``"sequence"``.
        singleton: What a group of one gets before that: ``"zero"``, or its ``"raw"`` score.
        whitening: How, where frameworks differ: see :class:`~rl_estimators.whitening.Whitening`; its weighting is
            ``norm_level`` here.

    Returns:
        Advantages ``(B, T)``, and the same tensor as returns: there is no critic to train.

    Raises:
        InputError: an unknown ``norm_level`` or ``singleton``, a ``whitening`` that does not fit.
    """
    check_choice("reinforce_pp_baseline", "norm_level", norm_level, ("token", "sequence"))
    check_choice("reinforce_pp_baseline", "singleton", singleton, ("zero", "raw"))
    how = read_whitening("reinforce_pp_baseline", whitening, weighting_is="norm_level")
    scores, ids, rows, mask = masked.grouped(token_level_rewards, response_mask, index)
    centred = masked.group_centred(scores, ids, rows, singleton=singleton)
    advantages = normalise_centred(centred, rows, mask, norm_level, how, singleton)
    return Estimate(advantages, advantages)
