"""What is added to a reward before an estimator sees it: a KL penalty, a penalty on length.

Sources: Schulman, Approximating KL Divergence, 2020 (http://joschu.net/blog/kl-approx.html); Ziegler et al.,
Fine-Tuning Language Models from Human Preferences, section 2.2 (https://arxiv.org/abs/1909.08593); Yu et al., DAPO,
eq. 13 (https://arxiv.org/abs/2503.14476).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_estimators.errors import InputError
from rl_estimators.fields import check, check_choice, check_positive, check_range
from rl_estimators.masked import as_mask, select

__all__ = [
    "PENALTIES",
    "AdaptiveKLController",
    "FixedKLController",
    "kl_in_reward",
    "kl_penalty",
    "overlong_penalty",
]

PENALTIES = ("k1", "k2", "k3")


def kl_penalty(log_prob: Tensor, ref_log_prob: Tensor, response_mask: Tensor, penalty: str = "k1") -> Tensor:
    r"""Estimate, token by token, how far the policy is from the reference, in nats.

    With :math:`d = \log \pi_\mathrm{ref} - \log \pi` of the token that the policy sampled:

    ======  ===========================  =====================================================
    ``k1``  :math:`-d`                   unbiased; negative on half of the tokens
    ``k2``  :math:`d^2 / 2`              biased, little where the two are close; never negative
    ``k3``  :math:`e^d - 1 - d`          unbiased; never negative
    ======  ===========================  =====================================================

    Departures from verl's ``kl_penalty``: nothing is clamped, where verl holds d of k3 in [-20, 20] and k3 itself at
    10 or less; k3 is never negative, where in verl rounding errors of fp32 make it so for small d; half precision is
    computed in fp32.

    Args:
        log_prob: ``(B, T)`` log-probabilities (nats) under the policy that sampled.
        ref_log_prob: ``(B, T)`` log-probabilities (nats) under the reference.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        penalty: One of :data:`PENALTIES`.

    Returns:
        ``(B, T)``, exactly 0 at masked positions.

    Raises:
        InputError: an unknown penalty, a wrong shape or dtype.
    """
    check_choice("kl_penalty", "penalty", penalty, PENALTIES)
    given = {"log_prob": log_prob, "ref_log_prob": ref_log_prob, "response_mask": response_mask}
    check("kl_penalty", given, ())
    mask = as_mask(response_mask)
    d = select(ref_log_prob, mask, log_prob) - select(log_prob, mask, ref_log_prob)
    if penalty == "k1":
        kl = -d
    elif penalty == "k2":
        kl = d.square() / 2
    else:
        kl = (torch.expm1(d) - d).clamp(min=0)
    return torch.where(mask, kl, 0)


def kl_in_reward(
    token_level_rewards: Tensor,
    log_prob: Tensor,
    ref_log_prob: Tensor,
    response_mask: Tensor,
    beta: float,
    penalty: str = "k1",
) -> Tensor:
    r"""Charge every token for leaving the reference: :math:`r_t - \beta \, \mathrm{KL}_t`.

    Departures from verl's ``apply_kl_penalty``: NaN at masked positions stays out, and so do rewards there: move
    them to a valid token first, if there are any. With beta = 0 no log-probability is read. A KL that is not finite
    makes a reward that is not, which an estimator then excludes and counts.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        log_prob: ``(B, T)`` log-probabilities (nats) under the policy that sampled.
        ref_log_prob: ``(B, T)`` log-probabilities (nats) under the reference.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        beta: Reward per nat, at least 0; a controller's ``value``.
        penalty: See :func:`kl_penalty`.

    Returns:
        ``(B, T)``, exactly 0 at masked positions.

    Raises:
        InputError: beta below 0 or an unknown penalty.
    """
    check_range("kl_in_reward", beta=beta)
    check_choice("kl_in_reward", "penalty", penalty, PENALTIES)
    check("kl_in_reward", {"token_level_rewards": token_level_rewards, "response_mask": response_mask}, ())
    rewards = select(token_level_rewards, as_mask(response_mask), log_prob, ref_log_prob)
    if beta == 0:
        return rewards
    return rewards - beta * kl_penalty(log_prob, ref_log_prob, response_mask, penalty)


@dataclass
class FixedKLController:
    """A coefficient that stays as it is.

    Attributes:
        value: The coefficient, in reward per nat, at least 0.

    Raises:
        InputError: value below 0.
    """

    value: float

    def __post_init__(self) -> None:
        check_range("FixedKLController", value=self.value)

    def update(self, current_kl: float, n_steps: int) -> None:
        """Nothing: the call is there so that one controller can take the other's place."""


@dataclass
class AdaptiveKLController:
    r"""A coefficient that steers the KL divergence to a target.

    .. math::
        e = \mathrm{clip}(\mathrm{KL} / \mathrm{KL}_\mathrm{target} - 1, -0.2, 0.2), \quad
        \beta \leftarrow \beta (1 + K e), \quad K = n_\mathrm{steps} / \mathrm{horizon}

    The paper has K = 0.1; K by way of a horizon is its authors' code, and verl's ``AdaptiveKLController``, whose
    defaults these are. The paper's KL is a response's sum over tokens, verl's its mean over them: a target is meant
    for one of the two.

    Attributes:
        value: The coefficient, in reward per nat, at least 0.
        target: The KL to aim at, in nats, above 0.
        horizon: Over how many responses the coefficient may change by about a fifth, above 0.

    Raises:
        InputError: value below 0, target or horizon not above 0, or no number.
    """

    value: float = 0.001
    target: float = 0.1
    horizon: float = 10000

    def __post_init__(self) -> None:
        check_range("AdaptiveKLController", value=self.value)
        check_positive("AdaptiveKLController", target=self.target, horizon=self.horizon)

    def update(self, current_kl: float, n_steps: int) -> None:
        """Move the coefficient after a batch.

        Args:
            current_kl: The batch's KL, in nats.
            n_steps: How many responses the batch has.

        Raises:
            InputError: the KL is NaN, which would make the coefficient NaN for good.
        """
        if math.isnan(current_kl):
            raise InputError(
                "AdaptiveKLController: current_kl is nan; leave out responses whose log-probabilities are not finite"
            )
        error = min(max(current_kl / self.target - 1, -0.2), 0.2)
        self.value *= max(1 + error * n_steps / self.horizon, 0.0)  # a huge batch must not make it pay for KL


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    r"""Punish, more and more, a response that comes close to the length limit.

    .. math::
        0 \text{ if } n \le L - c, \qquad \frac{L - c - n}{c} \text{ if } L - c < n \le L, \qquad -1 \text{ if } n > L

    Departures: verl's DAPO reward manager goes on beyond -1 where n > L, and multiplies by a factor. A buffer of 0
    leaves the step from 0 to -1, as in TRL, where verl refuses it.

    Args:
        lengths: ``(B,)`` how many tokens each response has, n, in any dtype.
        max_length: L, in tokens.
        buffer: c, in tokens, in [0, L].

    Returns:
        ``(B,)``, in [-1, 0], fp32 (fp64 from fp64), to be added to each response's reward.

    Raises:
        InputError: lengths that are no tensor, max_length below 0 or buffer outside [0, max_length].
    """
    check_range("overlong_penalty", max_length=max_length)
    check_range("overlong_penalty", high=max_length, buffer=buffer)
    if not isinstance(lengths, Tensor):
        raise InputError(
            f"overlong_penalty: lengths has type {type(lengths).__name__}, expected a torch.Tensor"
        )
    lengths = lengths.to(torch.float64 if lengths.dtype == torch.float64 else torch.float32)
    if buffer == 0:
        return torch.where(lengths > max_length, -1.0, 0.0).to(lengths.dtype)
    return ((max_length - buffer - lengths) / buffer).clamp(-1, 0)
