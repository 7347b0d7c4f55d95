"""ReMax: the reward of the greedy response as baseline.

Source: Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large
Language Models, section 4, algorithm 1 (https://arxiv.org/abs/2310.10505). The charge for each token's own KL is that
of the authors' code: github.com/liziniu/ReMax, step3_rlhf_finetuning/remax_trainer.py, ``compute_returns``.
"""

import torch
from torch import Tensor

from rl_estimators import backends, masked
from rl_estimators.calls import register_adv_est
from rl_estimators.compat import compat
from rl_estimators.fields import check, check_choice, check_range
from rl_estimators.registry import Estimate
from rl_estimators.scan import discounted_sum
from rl_estimators.shaping import PENALTIES, kl_penalty


@register_adv_est("remax", source="https://arxiv.org/abs/2310.10505 algorithm 1")
@compat(verl={"gamma": 1.0, "beta": 0.0})
def remax(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    reward_baselines: Tensor,
    gamma: float = 1.0,
    beta: float = 0.0,
    penalty: str = "k1",
    old_log_probs: Tensor | None = None,
    ref_log_prob: Tensor | None = None,
) -> Estimate:
    r"""Subtract from the reward-to-go what the greedy response to the same prompt earned.

    .. math:: A_k = \sum_{j \ge k} \gamma^{j-k} r_j - r(x, \bar y) - \beta \, \mathrm{KL}_k

    over the valid tokens k = 1 ... n of a response to prompt x with greedy response :math:`\bar y`. The baseline
    does not depend on the sampled tokens, so it takes variance away without adding bias.

    A KL penalty can enter in two ways. In the token-level rewards (``kl_in_reward``; in verl
    ``algorithm.use_kl_in_reward``) it is part of the return: a token pays for what follows as well, as the gradient of
    the penalised objective has it. With ``beta`` a token pays for itself alone: so does the authors' code, which adds
    :math:`-\beta \mathrm{KL}_k` to each token's return and does not sum it up. Take one of the two. The greedy
    response's KL enters in neither. In verl ``beta`` needs the reference's log-probabilities:
    ``algorithm.use_kl_in_reward=True`` with ``algorithm.kl_ctrl.kl_coef=0``.

    The authors' code also clips the score minus the baseline to [-5, 5] and discounts both by gamma per token, the
    last one included: nothing of that is done here, and with gamma = 1 only the clip is missing. verl 0.9 does not
    discount; ``compat="verl"`` refuses a gamma other than 1.

    Args:
        token_level_rewards: ``(B, T)`` reward of each token.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        reward_baselines: ``(B,)`` total reward of the greedy response to each response's prompt.
        gamma: Discount per valid token, in [0, 1]; the paper has 1.
        beta: Reward per nat, at least 0; the authors' code has 0.05.
        penalty: How the KL of a token is estimated: ``"k1"``, as in the authors' code, ``"k2"`` or ``"k3"``, see
            :func:`rl_estimators.shaping.kl_penalty`.
        old_log_probs: ``(B, T)`` log-probabilities (nats) of the policy that sampled; read where beta is not 0.
        ref_log_prob: ``(B, T)`` log-probabilities (nats) of the reference, likewise.

    Returns:
        Advantages and the reward-to-go as returns, ``(B, T)``. A response whose baseline is not finite is
        excluded as if its own reward were not, and so is one with a KL that is not.

    Raises:
        InputError: gamma outside [0, 1], beta below 0, an unknown ``penalty``; beta without the log-probabilities.
    """
    check_range("remax", high=1.0, gamma=gamma)
    check_range("remax", beta=beta)
    check_choice("remax", "penalty", penalty, PENALTIES)
    charge = _charge(beta, penalty, response_mask, old_log_probs, ref_log_prob)
    if not charge:
        advantages, returns, _ = backends.returns(token_level_rewards, response_mask, gamma, reward_baselines)
        return Estimate(advantages, returns)
    rewards, mask, _ = masked.valid(token_level_rewards, response_mask, reward_baselines, *charge)
    returns = discounted_sum(rewards, mask, gamma)
    advantages = returns - reward_baselines[:, None] - sum(charge)
    return Estimate(torch.where(mask, advantages, 0).to(returns.dtype), returns)


def _charge(
    beta: float, penalty: str, response_mask: Tensor, old: Tensor | None, ref: Tensor | None
) -> tuple[Tensor, ...]:
    """``(B, T)`` what each token pays for its KL; nothing where beta is 0."""
    if beta == 0:
        return ()
    named = (("old_log_probs", old), ("ref_log_prob", ref))
    given = {name: x for name, x in named if x is not None}
    check("remax", given, ("old_log_probs", "ref_log_prob"))
    return (beta * kl_penalty(given["old_log_probs"], given["ref_log_prob"], response_mask, penalty),)
