"""Which tokens drive the policy's entropy down: the choice that `clip_cov` and `kl_cov` share.

Source: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, section 4
(https://arxiv.org/abs/2505.22617).
"""

import torch
from torch import Tensor

from rl_estimators.masked import centred
from rl_estimators.policy_losses.ratio import Tokens

__all__ = ["choose", "covariance"]


def covariance(tokens: Tokens) -> Tensor:
    r"""``(B, T)`` each token's part of the covariance of log-probability and advantage, without a gradient.

    .. math:: c_t = (\log\pi_t - \overline{\log\pi}) (A_t - \bar A)

    with means over the valid tokens of the batch at hand. 0 on masked positions, and exactly 0 everywhere if
    all advantages are equal.
    """
    return centred(tokens.log_prob.detach(), tokens.mask) * centred(tokens.gain, tokens.mask)


def choose(score: Tensor, candidates: Tensor, mask: Tensor, share: float) -> Tensor:
    """``(B, T)`` bool: the candidates with the highest scores, as many as ``share`` of all valid tokens.

    The number is rounded down but at least 1, as in the authors' code, unless ``share`` is 0: then it is 0. It is not
    read back from the device. Of equal scores the earlier token is taken.

    Args:
        score: ``(B, T)``.
        candidates: ``(B, T)`` bool, within the mask.
        mask: ``(B, T)`` bool.
        share: In [0, 1].
    """
    number = (mask.sum().double() * share).floor().clamp(min=1 if share > 0 else 0)
    flat = torch.where(candidates, score, -torch.inf).flatten()
    order = flat.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return (rank < number).view_as(mask) & candidates
