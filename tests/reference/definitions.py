"""The four advantage estimators, written out from their equations: numpy float64, explicit sums, row by row.

Nothing here is meant to be fast. A row is first cut down to its valid positions (mask nonzero), so what stands at a
masked position is never read; after that, step k of the row is element k of a short vector.

A response is *counted* (enters batch and group statistics) when it has a valid token and each of its valid rewards is
finite. A response with a non-finite reward is not counted and gets advantage 0.
"""

from typing import NamedTuple

import numpy as np

WHITEN_EPSILON = 1e-8


class Estimate(NamedTuple):
    advantages: np.ndarray  # (B, T)
    returns: np.ndarray  # (B, T)


def valid(mask_row):
    """Positions of one row's steps, in order."""
    return np.flatnonzero(np.asarray(mask_row) != 0)


def counted(rewards_row, mask_row):
    at = valid(mask_row)
    return len(at) > 0 and bool(np.isfinite(rewards_row[at]).all())


def tail_sums(x, decay):
    """S_k = sum_{j >= k} decay^(j-k) x_j, each k summed on its own (numpy sums pairwise)."""
    powers = np.float64(decay) ** np.arange(len(x))
    return np.array([np.sum(powers[: len(x) - k] * x[k:]) for k in range(len(x))], dtype=np.float64)


def whitened(x):
    """(x - mean) / sqrt(var + 1e-8), var with n - 1; exactly 0 for n < 2 or when all x are equal."""
    if len(x) < 2 or (x == x[0]).all():
        return np.zeros_like(x)
    mean = np.sum(x) / len(x)
    variance = np.sum((x - mean) ** 2) / (len(x) - 1)
    return (x - mean) / np.sqrt(variance + WHITEN_EPSILON)


def whiten_batch(advantages, rewards, mask):
    """Whiten, in place, all valid tokens of the counted responses together."""
    places = [(b, t) for b in range(len(mask)) if counted(rewards[b], mask[b]) for t in valid(mask[b])]
    if places:
        where = tuple(np.array(places).T)
        advantages[where] = whitened(advantages[where])


def gae(token_level_rewards, values, response_mask, gamma=1.0, lam=1.0, whiten=True):
    """Generalized advantage estimation; Schulman et al., arXiv 1506.02438, eq. 16 cut at the end of the response.

    delta_k = r_k + gamma V_{k+1} - V_k,  V_{n+1} = 0
    A_k = sum_{j >= k} (gamma lam)^(j-k) delta_j;  returns_k = A_k + V_k (before whitening)

    A response that is not counted because of a non-finite reward: A = 0, returns = V.
    """
    advantages = np.zeros(token_level_rewards.shape)
    returns = np.zeros(token_level_rewards.shape)
    for b, mask_row in enumerate(response_mask):
        at = valid(mask_row)
        r, v = token_level_rewards[b, at], values[b, at]
        if counted(token_level_rewards[b], mask_row):
            delta = r + gamma * np.append(v[1:], 0.0) - v
            advantages[b, at] = tail_sums(delta, gamma * lam)
        returns[b, at] = advantages[b, at] + v
    if whiten:
        whiten_batch(advantages, token_level_rewards, response_mask)
    return Estimate(advantages, returns)


def group_key(uid):
    """Uids are equal when type and value are: the int 1, "1" and "01" are three groups; np.int64(1) is 1."""
    return uid.item() if isinstance(uid, np.generic) else uid


def group_advantage(score, scores, norm_by_std, epsilon, singleton):
    """One response's advantage, given the counted scores of its group."""
    if len(scores) == 1:
        mean, std = (score, 1.0) if singleton == "zero" else (0.0, 1.0)
    elif (scores == scores[0]).all():
        return 0.0
    else:
        mean = np.sum(scores) / len(scores)
        std = np.sqrt(np.sum((scores - mean) ** 2) / (len(scores) - 1))
    return (score - mean) / (std + epsilon) if norm_by_std else score - mean


def grpo(token_level_rewards, response_mask, index, norm_by_std=True, epsilon=1e-6, singleton="zero"):
    """Group-relative advantage; Shao et al., arXiv 2402.03300, sec. 4.1.2 (without the division: 2503.20783).

    s = sum of the valid rewards;  A = (s - mean of group) / (std of group + epsilon), std with n - 1, at every valid
    token; returns = A.  Equal scores: 0.  Group of one: 0, or with singleton="raw" as for mean 0 and std 1.
    """
    members = {}
    for b, mask_row in enumerate(response_mask):
        if counted(token_level_rewards[b], mask_row):
            score = np.sum(token_level_rewards[b, valid(mask_row)])
            members.setdefault(group_key(index[b]), {})[b] = score
    advantages = np.zeros(token_level_rewards.shape)
    for group in members.values():
        scores = np.array(list(group.values()))
        for b, score in group.items():
            a = group_advantage(score, scores, norm_by_std, epsilon, singleton)
            advantages[b, valid(response_mask[b])] = a
    return Estimate(advantages, advantages.copy())


def rewards_to_go(token_level_rewards, response_mask, gamma):
    """G_k = sum_{j >= k} gamma^(j-k) r_j; 0 all along a response that is not counted."""
    returns = np.zeros(token_level_rewards.shape)
    for b, mask_row in enumerate(response_mask):
        if counted(token_level_rewards[b], mask_row):
            at = valid(mask_row)
            returns[b, at] = tail_sums(token_level_rewards[b, at], gamma)
    return returns


def reinforce_pp(token_level_rewards, response_mask, gamma=1.0):
    """REINFORCE++; Hu et al., arXiv 2501.03262v9, eq. 4-5: A = G whitened over the batch; returns = G."""
    returns = rewards_to_go(token_level_rewards, response_mask, gamma)
    advantages = returns.copy()
    whiten_batch(advantages, token_level_rewards, response_mask)
    return Estimate(advantages, returns)


def remax(token_level_rewards, response_mask, reward_baselines, gamma=1.0):
    """ReMax; Li et al., arXiv 2310.10505, alg. 2: A_k = G_k - score of the greedy response; returns = G."""
    returns = rewards_to_go(token_level_rewards, response_mask, gamma)
    advantages = np.zeros(token_level_rewards.shape)
    for b, mask_row in enumerate(response_mask):
        if counted(token_level_rewards[b], mask_row):
            at = valid(mask_row)
            advantages[b, at] = returns[b, at] - reward_baselines[b]
    return Estimate(advantages, returns)


ESTIMATORS = {"gae": gae, "grpo": grpo, "reinforce_pp": reinforce_pp, "remax": remax}
INPUTS = {
    "gae": ("token_level_rewards", "values", "response_mask"),
    "grpo": ("token_level_rewards", "response_mask", "index"),
    "reinforce_pp": ("token_level_rewards", "response_mask"),
    "remax": ("token_level_rewards", "response_mask", "reward_baselines"),
}
