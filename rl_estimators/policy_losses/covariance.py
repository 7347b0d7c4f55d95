"""Which tokens drive the policy's entropy down: the choice that `clip_cov` and `kl_cov` share.

Source: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, section 4
(https://arxiv.org/abs/2505.22617).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rl_estimators import backends
from rl_estimators.backends.rows import blocks, work_dtype
from rl_estimators.backends.torch_blocks import block_elements
from rl_estimators.masked import as_mask

__all__ = ["by_rank", "by_threshold", "covariances", "share_of", "top"]


def covariances(
    log_prob: Tensor, advantages: Tensor, response_mask: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    r"""Each token's part of the covariance of log-probability and advantage, without a gradient, block by block.

    .. math:: c_t = (\log\pi_t - \overline{\log\pi}) (A_t - \bar A)

    with means over the valid tokens of the batch at hand; exactly 0 if all advantages are equal. Masked positions hold
    anything.

    Args:
        log_prob: ``(B, T)``.
        advantages: ``(B, T)``.
        response_mask: ``(B, T)`` in any dtype.

    Yields:
        Which rows, and their covariances, in fp32 (fp64 if an input is).
    """
    dtype, pairs = work_dtype(log_prob, advantages), []
    for x in (log_prob.detach().to(dtype), advantages.detach().to(dtype)):
        if x.numel():
            pairs.append((x, *backends.pooled(backends.moments(x, response_mask), False, 0.0)[:2]))
    for some in blocks(log_prob.shape, block_elements(log_prob)) if pairs else ():
        first, second = (torch.sub(x[some], pivot).sub_(shift) for x, pivot, shift in pairs)
        yield some, first.mul_(second)


def share_of(response_mask: Tensor, share: float) -> Tensor:
    """0-dim, how many tokens are a share of all valid ones; it is not read back from the device.

    Rounded down but at least 1, as in the authors' code, unless ``share`` is 0: then it is 0.
    """
    return (as_mask(response_mask).sum().double() * share).floor().clamp(min=1 if share > 0 else 0)


def top(scores: Tensor, number: Tensor) -> Tensor:
    """``(N,)`` bool: the ``number`` highest of ``(N,)`` scores, and of equal ones the earlier; all if there are fewer."""
    return (by_threshold if scores.is_cpu else by_rank)(scores, number)


def by_rank(scores: Tensor, number: Tensor) -> Tensor:
    """For a number that stays on the device: every score's place in the order."""
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return rank < number


def by_threshold(scores: Tensor, number: Tensor) -> Tensor:
    """For a number that can be looked at: a tenth of the time."""
    size = min(int(number), len(scores))
    if size == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    highest, places = scores.topk(size)
    found, ties = torch.zeros_like(scores, dtype=torch.bool), scores == highest[-1]
    if ties.sum(dtype=torch.int32) == (highest == highest[-1]).sum():  # all that are equal to the last are in
        found[places] = True
        return found
    torch.gt(scores, highest[-1], out=found)
    found[ties.nonzero()[: size - int(found.sum()), 0]] = True
    return found
