"""The policy losses beside ppo_clip and their gradients by hand: numpy float64, by element and by row.

Each function takes x (the log-probabilities in training) twice: as `new`, which the loss trains, and as
`frozen`, which stands wherever the definition stops the gradient. It returns L (B, T) and a function that
maps the derivative of the final number by each L, the shares, to its derivative by each x.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reference.definitions import valid


class Loss(NamedTuple):
    loss: np.ndarray  # (B, T), 0 at masked positions
    pull: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # shares -> gradient, size of the terms in it


def bounded(log_ratio):
    """exp(clip(l, -20, 20)) and its derivative by l: itself, or 0 where l is clipped."""
    value = math.exp(min(max(log_ratio, -20.0), 20.0))
    return value, (value if -20.0 < log_ratio < 20.0 else 0.0)


def by_token(function, mask, *inputs):
    """A scalar function (loss, slope, size of the slope's terms) at each valid position."""
    loss, slope, size = (np.zeros(mask.shape) for _ in range(3))
    for b, t in np.argwhere(mask != 0):
        loss[b, t], slope[b, t], size[b, t] = function(*(float(x[b, t]) for x in inputs))
    return Loss(loss, lambda share: (share * slope, share * size))


def by_row(function, mask, *inputs):
    """A function of a row's valid elements: losses l, and the matrix dl_t/dx_u."""
    loss, jacobians = np.zeros(mask.shape), {}
    for b, mask_row in enumerate(mask):
        at = valid(mask_row)
        if len(at):
            loss[b, at], jacobians[b] = function(*(x[b, at] for x in inputs))

    def pull(share):
        gradient, size = np.zeros(mask.shape), np.zeros(mask.shape)
        for b, jacobian in jacobians.items():
            at = valid(mask[b])
            gradient[b, at] = share[b, at] @ jacobian
            size[b, at] = share[b, at] @ np.abs(jacobian)
        return gradient, size

    return Loss(loss, pull)


def plain(value, slope):
    return value, slope, abs(slope)


def reinforce(old, new, frozen, advantages, mask):
    """L = -A x;  dL/dx = -A."""
    return by_token(lambda x, a: plain(-a * x, -a), mask, new, advantages)


gpg = reinforce


def importance_sampling(old, new, frozen, advantages, mask):
    """L = -A w, w = exp(x - old);  dL/dx = -A w."""

    def at_token(o, x, a):
        w, dw = bounded(x - o)
        return plain(-a * w, -a * dw)

    return by_token(at_token, mask, old, new, advantages)


def surrogate(w, dw, a, low, high):
    """max(-A w, -A clip(w, 1 - low, 1 + high)) and its slope: -A dw unless the second is larger, then 0."""
    unclipped, clipped = -a * w, -a * min(max(w, 1 - low), 1 + high)
    return (unclipped, -a * dw) if unclipped >= clipped else (clipped, 0.0)


def gspo(old, new, frozen, advantages, mask, clip_ratio_low=3e-4, clip_ratio_high=4e-4, token_level=False):
    """L_t = max(-s A_t, -clip(s) A_t), s = exp(m), m = sum_u (x_u - old_u) / n;  arXiv 2507.18071, eq. 5, 7.

    dm/dx_u = 1/n, so dL_t/dx_u = (slope of the surrogate in m) / n for every u of the row.
    In the token form, eq. 14, log s_t = sg[m] + x_t - sg[x_t]: dL_t/dx_u is the slope for u = t and 0 else.
    """

    def at_row(o, x, fixed, a):
        n = len(x)
        m = np.full(n, np.sum((fixed if token_level else x) - o) / n)
        if token_level:
            m = m + x - fixed
        pairs = [surrogate(*bounded(m[t]), a[t], clip_ratio_low, clip_ratio_high) for t in range(n)]
        slope = np.array([pair[1] for pair in pairs])
        jacobian = np.diag(slope) if token_level else np.outer(slope, np.full(n, 1 / n))
        return [pair[0] for pair in pairs], jacobian

    return by_row(at_row, mask, old, new, frozen, advantages)


def cispo(old, new, frozen, advantages, mask, clip_ratio_low=1.0, clip_ratio_high=0.2):
    """L = -c A x, c = clip(exp(sg[x] - old), 1 - low, 1 + high);  dL/dx = -c A;  arXiv 2506.13585, eq. 4."""

    def at_token(o, x, fixed, a):
        c = min(max(bounded(fixed - o)[0], 1 - clip_ratio_low), 1 + clip_ratio_high)
        return plain(-c * a * x, -c * a)

    return by_token(at_token, mask, old, new, frozen, advantages)


def gmpo(old, new, frozen, advantages, mask, clip_ratio_low=0.4, clip_ratio_high=0.4):
    """L = -sgn(A) (prod_t |min(w_t A, clip(w_t, e^-low, e^high) A)|)^(1/n);  arXiv 2507.20673, sec. 3.

    For A > 0 the factor is A min(w, e^high), for A < 0 it is |A| max(w, e^-low), so L = -A g with g the
    geometric mean of the clipped w. dg/dx_u = g/n where w_u is not clipped and 0 where it is. A is the mean
    over the row.
    """

    def at_row(o, x, a):
        n, a = len(x), np.sum(a) / len(x)
        if a == 0:
            return np.zeros(n), np.zeros((n, n))
        low, high = math.exp(-clip_ratio_low), math.exp(clip_ratio_high)
        factors = [min(w * a, min(max(w, low), high) * a) for w in np.exp(x - o)]
        log_g = sum(math.log(abs(f)) for f in factors) / n - math.log(abs(a))
        g, dg = bounded(log_g)
        free = (x - o < clip_ratio_high) if a > 0 else (x - o > -clip_ratio_low)
        return np.full(n, -a * g), np.outer(np.ones(n), -a * dg * free / n)

    return by_row(at_row, mask, old, new, advantages)


def sapo(old, new, frozen, advantages, mask, tau_pos=1.0, tau_neg=1.05):
    """L = -(4 / tau) S A, S = 1 / (1 + exp(-tau (w - 1)));  arXiv 2511.20347, sec. 3.

    dS/dw = tau S (1 - S), so dL/dx = -4 S (1 - S) A dw. 1 - S is exact to one rounding of 1 at best, hence
    the size.
    """

    def at_token(o, x, a):
        w, dw = bounded(x - o)
        tau = tau_pos if a > 0 else tau_neg
        z = tau * (w - 1)
        s, rest = 1 / (1 + math.exp(-z)), math.exp(-min(z, 700.0)) / (1 + math.exp(-min(z, 700.0)))
        return -4 / tau * s * a, -4 * s * rest * a * dw, 4 * abs(a) * min(w, 100.0)

    return by_token(at_token, mask, old, new, advantages)


def covariances(x, advantages, mask):
    """c = (x - mean of x) (A - mean of A) over the batch's valid tokens; exactly 0 if all A are equal."""
    out, at = np.zeros(mask.shape), np.asarray(mask) != 0
    if at.any() and not (advantages[at] == advantages[at][0]).all():
        n = at.sum()
        out[at] = (x[at] - np.sum(x[at]) / n) * (advantages[at] - np.sum(advantages[at]) / n)
    return out


def number(mask, share):
    return max(int(share * (np.asarray(mask) != 0).sum()), 1)


def clip_cov(
    old, new, frozen, advantages, mask, clip_cov_ratio=2e-4, clip_cov_lb=1.0, clip_cov_ub=5.0,
    clip_ratio_low=1.0, clip_ratio_high=1.0,
):  # fmt: skip
    """0 on I, else PPO's surrogate;  arXiv 2505.22617, sec. 4.2. Written for draws that take every candidate.

    The candidates: covariance in [lb, ub], and the clip has not replaced the loss.
    """
    cov = covariances(frozen, advantages, mask)

    def at_token(o, x, a, c):
        value, slope = surrogate(*bounded(x - o), a, clip_ratio_low, clip_ratio_high)
        replaced = value > -a * bounded(x - o)[0]
        return (0.0, 0.0, 0.0) if clip_cov_lb <= c <= clip_cov_ub and not replaced else plain(value, slope)

    return by_token(at_token, mask, old, new, advantages, cov)


def kl_cov(old, new, frozen, advantages, mask, kl_cov_ratio=2e-4, ppo_kl_coef=1.0):
    """L = -A w, + beta |x - old| on the k N tokens of largest covariance;  arXiv 2505.22617, sec. 4.2.

    A token is among them when fewer than k N tokens have a larger covariance, or an equal one at an earlier
    place. The penalty's slope is beta sgn(x - old).
    """
    cov, places = covariances(frozen, advantages, mask), np.argwhere(np.asarray(mask) != 0).tolist()
    chosen = np.zeros(mask.shape)
    for i, (b, t) in enumerate(places):
        c = cov[b, t]
        ahead = sum(cov[p, q] > c or (cov[p, q] == c and j < i) for j, (p, q) in enumerate(places))
        chosen[b, t] = ahead < number(mask, kl_cov_ratio)

    def at_token(o, x, a, is_chosen):
        (w, dw), beta = bounded(x - o), ppo_kl_coef * is_chosen
        sign = (x > o) - (x < o)
        return -a * w + beta * abs(x - o), -a * dw + beta * sign, abs(a * dw) + beta

    return by_token(at_token, mask, old, new, advantages, chosen)


LOSSES = {
    "reinforce": reinforce,
    "gpg": gpg,
    "importance_sampling": importance_sampling,
    "gspo": gspo,
    "cispo": cispo,
    "gmpo": gmpo,
    "sapo": sapo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
