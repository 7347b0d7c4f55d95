"""An advantage estimator of one's own, between the group's mean and the batch's."""

import numpy as np
import torch
from torch import Tensor

import rl_estimators


@rl_estimators.register_adv_est("shrunk_mean", source="examples/own_estimator of rl-estimators")
def shrunk_mean(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, strength: float = 4.0
) -> tuple[Tensor, Tensor]:
    r"""Subtract the group's mean, drawn towards the batch's, the more the smaller the group.

    .. math::
        A_b = s_b - \frac{\sum_{c \in g(b)} s_c + k \bar s}{n + k}

    for the n responses of b's group and the mean :math:`\bar s` of the batch. k = 0 is ``grpo`` without its division.
    With k > 0 a group whose answers are all wrong is not silent: it is pushed away from what it did, gently.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere.
        index: ``(B,)`` the prompt of each response.
        strength: k, the number of responses that the batch's mean is worth; at least 0.
    """
    valid = response_mask.bool()
    scores = token_level_rewards.where(valid, 0).sum(-1)  # not times the mask: NaN in padding times 0 is NaN
    group = torch.as_tensor(np.unique(index, return_inverse=True)[1], device=scores.device)
    size = group.bincount()
    total = scores.new_zeros(len(size)).index_add(0, group, scores)
    baseline = (total + strength * scores.mean()) / (size + strength)
    advantages = (scores - baseline[group])[:, None].where(valid, 0)
    return advantages, advantages
