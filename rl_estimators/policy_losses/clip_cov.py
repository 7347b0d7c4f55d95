"""Clip-Cov: tokens of high covariance, drawn at random, are left out.

Source: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, section 4
(https://arxiv.org/abs/2505.22617v1).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators.backends import work_dtype
from rl_estimators.backends.torch_blocks import compare, keep, mask_bits
from rl_estimators.calls import register_policy_loss
from rl_estimators.errors import InputError
from rl_estimators.fields import check_number, check_range
from rl_estimators.masked import as_mask
from rl_estimators.policy_losses.covariance import covariances, share_of, top
from rl_estimators.policy_losses.ratio import bounded_exp, clipped_surrogate, held_still, reduce, weighed


@register_policy_loss("clip_cov", source="https://arxiv.org/abs/2505.22617v1 section 4")
def clip_cov(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    clip_cov_ratio: float = 2e-4,
    clip_cov_lb: float = 1.0,
    clip_cov_ub: float = 5.0,
    clip_ratio_low: float = 1.0,
    clip_ratio_high: float = 1.0,
    generator: torch.Generator | None = None,
    rollout_is_weights: Tensor | None = None,
    global_batch_info: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""PPO's clipped surrogate, and 0 for a few tokens whose update would cost the policy most entropy.

    .. math::
        c_t = (\log\pi_t - \overline{\log\pi}) (A_t - \bar A), \qquad
        L_t = \begin{cases}
            0 & t \in I \\
            \max(-\rho_t A_t, \; -\mathrm{clip}(\rho_t, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A_t)
            & \text{otherwise}
        \end{cases}

    I is drawn uniformly from the tokens with :math:`c_t \in [\omega_{low}, \omega_{high}]` whose loss the
    clip has not replaced; it has r N members, N being the number of valid tokens, or all such tokens if there
    are fewer. A token in I still counts in the mean's denominator.

    The paper's equations have no clip and may draw none; as the authors' code and verl's ``clip_cov``, this
    has the one (wide open by default, as in their scripts: [0, 2]; verl's actor brings its own 0.2) and draws
    at least one. verl leaves the ends of the interval out. As in `ppo_clip` the log-ratio is clamped to [-20,
    20], which verl does not do here.

    The mean is over the tokens of the batch, ``token-mean``, as in verl's recipe of the authors. Means, N and the
    draw are over the batch at hand, so micro-batches choose other tokens than the whole
    batch would, and at least one each. What is drawn depends on ``generator`` and the number of valid tokens
    before a token, on the CPU not on padding. Ranks that hold the same tokens must draw alike, from
    generators with one seed.

    Args:
        old_log_prob: ``(B, T)`` log-probabilities (nats) before the update.
        log_prob: ``(B, T)`` log-probabilities in training; the loss is differentiable in them alone.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)``, 1 on valid tokens and 0 elsewhere, in any dtype.
        loss_agg_mode: See :func:`rl_estimators.aggregation.aggregate`.
        clip_cov_ratio: r, in [0, 1]; the paper's 2e-4. 0 leaves no token out; verl refuses it.
        clip_cov_lb: :math:`\omega_{low}`, in nats times units of advantage; the paper's 1.
        clip_cov_ub: :math:`\omega_{high}`, likewise, at least ``clip_cov_lb``; the paper's 5.
        clip_ratio_low: :math:`\epsilon_{low}`, in [0, 1].
        clip_ratio_high: :math:`\epsilon_{high}`, at least 0.
        generator: Draws the tokens; None is torch's own. verl's configuration cannot hold one.
        rollout_is_weights: ``(B, T)`` factors that correct for a policy that sampled differently.
        global_batch_info: See :func:`rl_estimators.aggregation.aggregate`.

    Returns:
        The loss, 0-dim, and metrics: ``cov_frac`` (share of valid tokens in I, which verl reports as
        ``pg_clipfrac``), ``pg_clipfrac`` (share of valid tokens whose loss the clip replaced) and ``ppo_kl``
        (mean of the log-ratio's negative, k1, nats).

    Raises:
        InputError: an option out of range or of a wrong type, an unknown ``loss_agg_mode``.
    """
    check_range("clip_cov", high=1.0, clip_cov_ratio=clip_cov_ratio, clip_ratio_low=clip_ratio_low)
    check_range("clip_cov", clip_ratio_high=clip_ratio_high)
    check_number("clip_cov", clip_cov_lb=clip_cov_lb)
    check_range("clip_cov", low=clip_cov_lb, clip_cov_ub=clip_cov_ub)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"clip_cov: generator is {generator!r}, expected a torch.Generator: torch.Generator().manual_seed(0)"
        )
    mask, low, high = as_mask(response_mask), clip_ratio_low, clip_ratio_high
    candidates = torch.zeros_like(mask)
    old, new, gain = (x.detach() for x in (old_log_prob, log_prob, advantages))
    for some, cov in covariances(new, gain, mask):
        *_, clipped = _surrogate(old[some], new[some], gain[some], low, high)
        within = compare("greater_equal", cov, clip_cov_lb) & compare("less_equal", cov, clip_cov_ub)
        candidates[some] = mask[some] & ~clipped & within
    chosen = _draw(candidates, mask, share_of(mask, clip_cov_ratio), generator)
    inputs = (old_log_prob, log_prob, advantages, response_mask)
    loss, (cov_frac, clip_frac, log_ratio) = reduce(
        partial(_term, low=low, high=high),
        *inputs,
        loss_agg_mode,
        rollout_is_weights,
        global_batch_info,
        chosen,
    )
    return loss, {"cov_frac": cov_frac, "pg_clipfrac": clip_frac, "ppo_kl": -log_ratio}


def _surrogate(old: Tensor, new: Tensor, gain: Tensor, low: float, high: float) -> tuple[Tensor, ...]:
    """The log-ratio, and what :func:`~rl_estimators.policy_losses.ratio.clipped_surrogate` says."""
    dtype = work_dtype(old, new, gain)
    log_ratio = new.to(dtype) - old.to(dtype)
    return log_ratio, *clipped_surrogate(gain.to(dtype), bounded_exp(log_ratio), low, high)


def _term(
    valid: Tensor,
    log_prob: Tensor,
    old_log_prob: Tensor,
    gain: Tensor,
    chosen: Tensor,
    weights: Tensor | None = None,
    *,
    low: float,
    high: float,
) -> tuple[Tensor, ...]:
    """A block's losses; their slopes, -A ratio where nothing holds it; who is left out, where the clip is; log-ratio."""
    log_ratio, plain, smaller, clipped = _surrogate(old_log_prob, log_prob, gain, low, high)
    held = clipped | held_still(log_ratio) | compare("greater", chosen, 0)
    slopes = keep(plain, mask_bits(~held, plain.dtype)).neg_()
    losses = smaller.mul_(chosen - 1)
    return *weighed(losses, slopes, weights), chosen, clipped, log_ratio


def _draw(candidates: Tensor, mask: Tensor, number: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(B, T)`` bool, that number of candidates: each valid token draws a number, in order, and the highest count."""
    if not mask.is_cpu:
        return _draw_blindly(candidates, mask, number, generator)
    device = mask.device if generator is None else generator.device
    # numpy finds what is true in a tenth of the time that torch takes
    places = np.flatnonzero(mask.numpy())
    numbers = torch.rand(len(places), dtype=torch.float64, generator=generator, device=device).cpu()
    among = np.flatnonzero(candidates.numpy().reshape(-1)[places])
    chosen = torch.zeros(candidates.shape, dtype=torch.bool)
    chosen.view(-1)[torch.from_numpy(places[among])] = top(numbers[torch.from_numpy(among)], number)
    return chosen


def _draw_blindly(
    candidates: Tensor, mask: Tensor, number: Tensor, generator: torch.Generator | None
) -> Tensor:
    """The same without a look at how many tokens are valid."""
    device = mask.device if generator is None else generator.device
    numbers = torch.rand(mask.numel(), dtype=torch.float64, generator=generator, device=device)
    place = (mask.flatten().cumsum(0) - 1).clamp(min=0)
    scores = torch.where(candidates.flatten(), numbers.to(mask.device)[place], -torch.inf)
    return top(scores, number).view_as(mask) & candidates
