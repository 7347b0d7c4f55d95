"""The losses and their gradients by hand: numpy float64, element by element and row by row.

Each loss is a matrix L (B, T) of per-token losses followed by an aggregation. `LOSSES[name](...)` returns L and dL/dx,
where x is what the loss trains (log_prob, or vpreds). All five aggregations are linear in L, so the gradient of the
aggregated loss is `weights(...) * dL/dx`.
"""

import math
from typing import NamedTuple

import numpy as np

from reference.definitions import valid

AGGREGATIONS = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
)


class PerToken(NamedTuple):
    loss: np.ndarray  # (B, T), 0 at masked positions
    slope: np.ndarray  # (B, T), dL/dx, 0 at masked positions


def per_token(function, mask, *inputs):
    """Apply a scalar function (loss, slope) at the valid positions only."""
    loss, slope = np.zeros(mask.shape), np.zeros(mask.shape)
    for b, mask_row in enumerate(mask):
        for t in valid(mask_row):
            loss[b, t], slope[b, t] = function(*(float(x[b, t]) for x in inputs))
    return PerToken(loss, slope)


def mse(vpreds, values, returns, response_mask):
    """L = 1/2 (v - R)^2;  dL/dv = v - R.  The old values play no part."""
    return per_token(lambda v, r: (0.5 * (v - r) ** 2, v - r), response_mask, vpreds, returns)


def clipped(vpreds, values, returns, response_mask, cliprange_value=0.5):
    """L = 1/2 max((v - R)^2, (clip(v, V - c, V + c) - R)^2), as in OpenAI baselines' ppo2.

    Within the clip range both terms and their slopes agree: v - R. Outside it the clipped term is constant in v, so the
    slope is v - R where the first term is the larger and 0 where the second is.
    """

    def at_token(v, old, r):
        inside = min(max(v, old - cliprange_value), old + cliprange_value)
        first, second = (v - r) ** 2, (inside - r) ** 2
        return 0.5 * max(first, second), (v - r if first >= second else 0.0)

    return per_token(at_token, response_mask, vpreds, values, returns)


def ppo_clip(
    old_log_prob,
    log_prob,
    advantages,
    response_mask,
    clip_ratio_low=0.2,
    clip_ratio_high=0.2,
    clip_ratio_c=None,
):
    """L = max(-A w, -A clip(w, 1 - low, 1 + high)); Schulman et al., arXiv 1707.06347, eq. 7.

    w = exp(clip(log_prob - old_log_prob, -20, 20)), so dw/dlog_prob = w, and 0 where the log-ratio is clipped.
    Dual clip (Ye et al., arXiv 1912.09729, eq. 5): where A < 0, L = min(L, -A c).
    Slope: -A dw where the unclipped term is the larger (or both agree, inside the range); else a constant, so 0.
    """

    def at_token(old, new, a):
        w = math.exp(min(max(new - old, -20.0), 20.0))
        dw = w if -20.0 < new - old < 20.0 else 0.0
        unclipped, other = -a * w, -a * min(max(w, 1 - clip_ratio_low), 1 + clip_ratio_high)
        loss, slope = (unclipped, -a * dw) if unclipped >= other else (other, 0.0)
        if clip_ratio_c is not None and a < 0 and -a * clip_ratio_c < loss:
            return -a * clip_ratio_c, 0.0
        return loss, slope

    return per_token(at_token, response_mask, old_log_prob, log_prob, advantages)


def denominators(mask, info):
    """Tokens, sequences, horizon and dp_size: counted here unless `global_batch_info` says otherwise."""
    info = {key: value for key, value in (info or {}).items() if value is not None}
    tokens = info.get("batch_num_tokens", sum(len(valid(row)) for row in mask))
    sequences = info.get("global_batch_size", sum(len(valid(row)) > 0 for row in mask))
    return tokens, sequences, info.get("loss_scale_factor", mask.shape[1]), info.get("dp_size", 1)


def aggregate(loss, mask, mode, info=None):
    """One number from L, by verl's names; 0 when no token is valid.

    token-mean: sum over valid / number valid;  token-sum: sum over valid
    seq-mean-token-sum: sum of row sums / number of rows with a valid token;  ...-norm: that / T
    seq-mean-token-mean: sum of row means / number of rows with a valid token (no 1e-8, which verl adds to the count)
    """
    tokens, sequences, horizon, dp_size = denominators(mask, info)
    rows = [row[valid(mask_row)] for row, mask_row in zip(loss, mask, strict=True) if len(valid(mask_row))]
    if not rows:
        return 0.0
    sums, means = sum(np.sum(row) for row in rows), sum(np.sum(row) / len(row) for row in rows)
    whole = {
        "token-mean": sums / tokens,
        "token-sum": sums,
        "seq-mean-token-sum": sums / sequences,
        "seq-mean-token-sum-norm": sums / sequences / horizon,
        "seq-mean-token-mean": means / sequences,
    }
    return float(whole[mode] * dp_size)


def weights(mask, mode, info=None):
    """The derivative of the aggregated loss by each L; 0 at masked positions."""
    tokens, sequences, horizon, dp_size = denominators(mask, info)
    out = np.zeros(mask.shape)
    for b, mask_row in enumerate(mask):
        at = valid(mask_row)
        if len(at):
            divisor = {
                "token-mean": tokens,
                "token-sum": 1,
                "seq-mean-token-sum": sequences,
                "seq-mean-token-sum-norm": sequences * horizon,
                "seq-mean-token-mean": sequences * len(at),
            }
            out[b, at] = dp_size / divisor[mode]
    return out


POLICY_LOSSES = {"ppo_clip": ppo_clip}
VALUE_LOSSES = {"mse": mse, "clipped": clipped}
LOSSES = {**POLICY_LOSSES, **VALUE_LOSSES}
TRAINED = {"ppo_clip": "log_prob", "mse": "vpreds", "clipped": "vpreds"}
INPUTS = {
    "ppo_clip": ("old_log_prob", "log_prob", "advantages"),
    "mse": ("vpreds", "values", "returns"),
    "clipped": ("vpreds", "values", "returns"),
}
