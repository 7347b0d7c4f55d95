"""The estimators without groups, from their equations: numpy float64, explicit sums, row by row.

As in definitions.py a row is first cut down to its valid positions: r, v and what stands at step k are elements of
short vectors, k = 0 ... n - 1. `last` is the value after the last step: the bootstrap value of a truncated response, 0
of a finished one. A response is *counted* when it has a valid token and its valid rewards, its valid values and its
last value are finite; another gets advantage 0 and its old values, where finite, as returns.
"""

from typing import NamedTuple

import numpy as np

from reference.definitions import Estimate, valid, whitened


class Row(NamedTuple):
    at: np.ndarray  # positions of the steps
    r: np.ndarray  # (n,)
    v: np.ndarray  # (n,)
    last: float


def rows_of(token_level_rewards, values, response_mask, truncated=None, bootstrap_values=None):
    """One Row per response, or None for one that is not counted."""
    out = []
    for b, mask_row in enumerate(response_mask):
        at = valid(mask_row)
        r, v = token_level_rewards[b, at], values[b, at]
        last = 0.0 if truncated is None or not truncated[b] else float(bootstrap_values[b])
        good = len(at) and np.isfinite(r).all() and np.isfinite(v).all() and np.isfinite(last)
        out.append(Row(at, r, v, last) if good else None)
    return out


def power_sum(decay, terms):
    """terms_0 + decay terms_1 + decay^2 terms_2 + ..., with 0^0 = 1."""
    return float(np.sum(np.float64(decay) ** np.arange(len(terms)) * terms))


def errors(row, gamma):
    """delta_k = r_k + gamma V_{k+1} - V_k."""
    following = np.append(row.v[1:], row.last)
    return row.r + gamma * following - row.v


def gae_row(row, gamma, lam):
    """A_k = sum_{j >= k} (gamma lam)^(j-k) delta_j; Schulman et al., arXiv 1506.02438, eq. 16."""
    delta = errors(row, gamma)
    return np.array([power_sum(gamma * lam, delta[k:]) for k in range(len(delta))])


def k_step_row(row, gamma, k):
    """R_j = sum_{i < m} gamma^i r_{j+i} + gamma^m V_{j+m}, m = min(k, n - j); eq. 11-15."""
    n, known = len(row.r), np.append(row.v, row.last)
    reach = [min(k, n - j) for j in range(n)]
    return np.array(
        [power_sum(gamma, row.r[j : j + m]) + gamma**m * known[j + m] for j, m in enumerate(reach)]
    )


def mc_row(row, gamma):
    """R_k = r_k + gamma r_{k+1} + ... + gamma^(n-k) last."""
    rewards = np.append(row.r, row.last)
    return np.array([power_sum(gamma, rewards[k:]) for k in range(len(row.r))])


def turns_of(at):
    """Runs of neighbouring positions, as ranges of steps [start, stop)."""
    starts = [k for k in range(len(at)) if k == 0 or at[k] != at[k - 1] + 1]
    return list(zip(starts, [*starts[1:], len(at)], strict=True))


def turn_row(row, gamma, lam):
    """A and R of each step's turn: reward summed over the turn, value before its first token."""
    turns = turns_of(row.at)
    by_turn = Row(
        np.arange(len(turns)),
        np.array([np.sum(row.r[start:stop]) for start, stop in turns]),
        np.array([row.v[start] for start, _ in turns]),
        row.last,
    )
    a = gae_row(by_turn, gamma, lam)
    lengths = [stop - start for start, stop in turns]
    return np.repeat(a, lengths), np.repeat(a + by_turn.v, lengths)


def lambda_of(n, alpha):
    """1 - 1 / (alpha n), clipped to [0, 1]; Yue et al., arXiv 2504.05118, eq. 5."""
    return min(max(1 - 1 / (alpha * n), 0.0), 1.0)


def estimate(per_row, whiten, inputs):
    """Put rows together; `per_row` gives (advantages, returns) of one counted row."""
    rows, shape = rows_of(**inputs), inputs["token_level_rewards"].shape
    mask = np.asarray(inputs["response_mask"]) != 0
    advantages, returns = np.zeros(shape), np.zeros(shape)
    old = inputs["values"]
    returns[mask] = np.where(np.isfinite(old), old, 0.0)[mask]
    inside = np.zeros(shape, dtype=bool)
    for b, row in enumerate(rows):
        if row is not None:
            advantages[b, row.at], returns[b, row.at] = per_row(row)
            inside[b, row.at] = True
    if whiten:
        advantages[inside] = whitened(advantages[inside])
    return Estimate(advantages, returns)


def reinforce(token_level_rewards, response_mask, gamma=1.0, whiten=False):
    """A = R = r_k + gamma r_{k+1} + ...: mc with values of 0; a response that is not counted has 0."""

    def per_row(row):
        returns = mc_row(row, gamma)
        return returns, returns

    blank = np.zeros(token_level_rewards.shape)
    inputs = {
        "token_level_rewards": token_level_rewards,
        "values": blank,
        "response_mask": response_mask,
    }
    return estimate(per_row, whiten, inputs)


def gae(gamma=1.0, lam=1.0, whiten=True, **inputs):
    def per_row(row):
        a = gae_row(row, gamma, lam)
        return a, a + row.v

    return estimate(per_row, whiten, inputs)


def td(gamma=1.0, whiten=True, **inputs):
    return estimate(lambda row: (errors(row, gamma), errors(row, gamma) + row.v), whiten, inputs)


def k_step_td(gamma=1.0, k=1, whiten=True, **inputs):
    def per_row(row):
        returns = k_step_row(row, gamma, k)
        return returns - row.v, returns

    return estimate(per_row, whiten, inputs)


def mc(gamma=1.0, whiten=True, **inputs):
    return estimate(lambda row: (mc_row(row, gamma) - row.v, mc_row(row, gamma)), whiten, inputs)


def decoupled_gae(gamma=1.0, lam=0.95, critic_lam=1.0, whiten=True, **inputs):
    return estimate(
        lambda row: (gae_row(row, gamma, lam), gae_row(row, gamma, critic_lam) + row.v), whiten, inputs
    )


def length_adaptive_gae(gamma=1.0, alpha=0.05, critic_lam=1.0, whiten=True, **inputs):
    def per_row(row):
        a = gae_row(row, gamma, lambda_of(len(row.r), alpha))
        return a, gae_row(row, gamma, critic_lam) + row.v

    return estimate(per_row, whiten, inputs)


def turn_gae(gamma=1.0, lam=1.0, whiten=True, **inputs):
    return estimate(lambda row: turn_row(row, gamma, lam), whiten, inputs)


WITH_VALUES = {
    "gae": gae,
    "td": td,
    "k_step_td": k_step_td,
    "mc": mc,
    "decoupled_gae": decoupled_gae,
    "length_adaptive_gae": length_adaptive_gae,
    "turn_gae": turn_gae,
}
ESTIMATORS = {"reinforce": reinforce, **WITH_VALUES}
INPUTS = {
    name: ("token_level_rewards", "response_mask", *(("values",) if name in WITH_VALUES else ()))
    for name in ESTIMATORS
}
