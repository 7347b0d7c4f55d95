"""One recorded batch of rollouts, as numpy arrays, the same every time; `verl_side` and `trl_side` replay it.

Twelve responses to three prompts. Tool output inside (rows 0, 3), at the start (row 10), at the end with the score on
it (row 5) and nothing else (row 8, which has no valid token); three responses cut off; one that nobody could score
(row 6). Rewards are multiples of 1/64, so their sums are exact in any order: TRL's trainer adds a response's
score after stray rewards are carried to a valid token, verl before.
"""

import numpy as np

ROWS, WIDTH, GROUP = 12, 7, 4
LENGTHS = (7, 3, 5, 6, 4, 7, 2, 6, 5, 1, 5, 4)  # of responses, tool output included
TOOL_OUTPUT = {0: (2, 3), 3: (1,), 5: (5, 6), 8: (0, 1, 2, 3, 4), 10: (0,)}
TRUNCATED = np.isin(np.arange(ROWS), (1, 5, 7))
UNSCORED = 6
WEIGHTS = (1.0, 0.5)  # of the two reward functions
NAMES = ("accuracy", "format")  # theirs
UIDS = np.array([uid for uid in ("7", "007", "prompt") for _ in range(GROUP)], dtype=object)

_rng = np.random.default_rng(8)


def _normal(*shape):
    return _rng.normal(size=shape).astype(np.float32)


def _steps(low, high, part, *shape):
    """Multiples of 1 / part."""
    return (_rng.integers(low * part, high * part, shape) / part).astype(np.float32)


WITHIN = np.arange(WIDTH) < np.array(LENGTHS)[:, None]  # (B, T) not padding
MASK = WITHIN.copy()  # (B, T) written by the policy
for _row, _holes in TOOL_OUTPUT.items():
    MASK[_row, list(_holes)] = False

COMPONENTS = _steps(1, 3, 16, ROWS, 2)
COMPONENTS[UNSCORED] = np.nan
PROCESS = np.where(WITHIN, _steps(-0.25, 0.25, 64, ROWS, WIDTH), 0)
BASELINES = np.repeat(_steps(1, 3, 16, ROWS // GROUP), GROUP)  # of the prompt's greedy response
VALUES = np.abs(_normal(ROWS, WIDTH)) + 1  # before each token
AFTER = np.abs(_normal(ROWS)) + 1  # after the last
OLD = -np.abs(_normal(ROWS, WIDTH))  # log-probabilities
REFERENCE = OLD + 0.3 * _normal(ROWS, WIDTH)
NEW = OLD + 0.3 * _normal(ROWS, WIDTH)
ADVANTAGES = _normal(ROWS, WIDTH)
RETURNS = VALUES + _normal(ROWS, WIDTH)
PREDICTED = VALUES + 0.6 * _normal(ROWS, WIDTH)  # the critic's values in training

SCORES = (COMPONENTS * np.array(WEIGHTS, dtype=np.float32)).sum(1)


def rewards(process=True):
    """``(B, T)`` as verl has them: the score on the response's last token, whoever wrote that."""
    found = PROCESS.copy() if process else np.zeros_like(PROCESS)
    found[np.arange(ROWS), np.array(LENGTHS) - 1] += SCORES
    return found


def carried(given):
    """Rewards of tool output moved to the last valid token before it, else to the first after it; one by one."""
    out = np.where(MASK, given, 0).astype(np.float64)
    for b, t in zip(*np.nonzero(WITHIN & ~MASK), strict=True):
        valid = np.flatnonzero(MASK[b])
        before = valid[valid < t]
        if len(valid) and np.isfinite(given[b, t]):
            out[b, before[-1] if len(before) else valid[0]] += float(given[b, t])
        elif len(valid):
            out[b, valid[-1]] = np.nan  # the score itself is missing
    return out


# What an estimator is told on both sides, beside the defaults.
GAMMA, LAM = 0.97, 0.9
OPTIONS = {
    "decoupled_gae": {"critic_lam": 0.8},
    "k_step_td": {"k": 2},
    "length_adaptive_gae": {"alpha": 0.3},
}
# Clip ranges that the recorded ratios leave on either side; clip_cov takes every candidate, so that it draws nothing.
POLICY_OPTIONS = {
    "cispo": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},
    "clip_cov": {
        **{"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 2.0},
        **{"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},
    },
    "gmpo": {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2},
    "gpg": {},
    "gspo": {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1},
    "importance_sampling": {},
    "kl_cov": {"kl_cov_ratio": 0.3, "ppo_kl_coef": 0.5},
    "ppo_clip": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0},
    "reinforce": {},
    "sapo": {"tau_pos": 0.5, "tau_neg": 3.0},
}
VALUE_OPTIONS = {"clipped": {"cliprange_value": 0.4}, "huber": {"delta": 0.5}, "mse": {}}
PER_BATCH = ("clip_cov", "kl_cov")  # they choose tokens among those of the micro-batch at hand
TOKENS, SEQUENCES = int(MASK.sum()), int(MASK.any(1).sum())
