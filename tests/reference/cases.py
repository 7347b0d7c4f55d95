"""Named batches for the estimators and losses, as float64 numpy arrays; the same every time.

Garbage at masked positions is part of a case, so that nothing may depend on it.
"""

import zlib
from dataclasses import dataclass

import numpy as np

LONG = 4096


@dataclass(frozen=True)
class Case:
    """One batch: B responses of at most T tokens."""

    name: str
    response_mask: np.ndarray  # (B, T) bool
    token_level_rewards: np.ndarray  # (B, T)
    values: np.ndarray  # (B, T)
    reward_baselines: np.ndarray  # (B,)
    index: object  # (B,) uids: object array or list


def rng_of(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def prefix_mask(lengths, width):
    return np.arange(width) < np.array(lengths)[:, None]


def uids(*names):
    return np.array(names, dtype=object)


def pairs(rows):
    """Groups of two, written as string uids."""
    return uids(*(f"uid-{b // 2}" for b in range(rows)))


def terminal(mask, scores):
    """Each row's score on its last valid token; 0 elsewhere."""
    rewards = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        if row.any():
            rewards[b, np.flatnonzero(row)[-1]] = scores[b]
    return rewards


def make(name, mask, rewards=None, values=None, baselines=None, index=None):
    """Fill what a case does not fix with standard normal draws (process rewards)."""
    rng, mask = rng_of(name), np.asarray(mask, dtype=bool)
    drawn = rng.normal(size=mask.shape), rng.normal(size=mask.shape), rng.normal(size=len(mask))
    return Case(
        name,
        mask,
        drawn[0] if rewards is None else np.asarray(rewards, dtype=np.float64),
        drawn[1] if values is None else np.asarray(values, dtype=np.float64),
        drawn[2] if baselines is None else np.asarray(baselines, dtype=np.float64),
        pairs(len(mask)) if index is None else index,
    )


RAGGED = prefix_mask([7, 1, 4, 5, 6, 2], 7)
HOLES = np.array(
    [
        [1, 1, 0, 0, 1, 0, 1],
        [1, 0, 1, 0, 1, 0, 1],
        [0, 0, 1, 1, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
    ],
    dtype=bool,
)


def mask_shapes():
    yield make("ragged_prefix", RAGGED)
    yield make("holes", HOLES)
    yield make("leading_masked", RAGGED[:, ::-1].copy())
    yield make("full", np.ones((4, 5)))
    yield make("all_masked_rows", prefix_mask([3, 0, 4, 2, 0, 0, 1, 4], 5), index=uids(*"aabbabpq"))
    yield make("one_valid_token", prefix_mask([0, 1, 0], 3))
    yield make("two_valid_tokens_one_row", prefix_mask([0, 2, 0], 3))
    yield make("no_valid_token", np.zeros((3, 4)))
    yield make("width_one", np.array([[1], [1], [0], [1]]), index=uids(*"aaab"))
    yield make("one_row", prefix_mask([4], 6))
    yield make("one_by_one", np.ones((1, 1)))
    yield make("one_by_one_masked", np.zeros((1, 1)))
    yield make(
        "large_random", rng_of("large_random").random((24, 33)) < 0.7, index=[b % 5 for b in range(24)]
    )


def reward_shapes():
    outcome = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    yield make("outcome_01", RAGGED, rewards=terminal(RAGGED, outcome), index=uids(*"aaabbb"))
    yield make("outcome_holes", HOLES, rewards=terminal(HOLES, outcome), index=uids(*"ababab"))
    wide = prefix_mask([5, 3, 5, 2, 4, 1, 5], 5)
    yield make("tie_0.7", wide, rewards=terminal(wide, [0.7] * 7), index=["g"] * 7)
    yield make("tie_1000.1", wide, rewards=terminal(wide, [1000.1] * 7), index=["g"] * 7)
    yield make(
        "tie_in_one_group", wide, rewards=terminal(wide, [0.7, 0.7, 0.7, 0, 1, 1, 0]), index=[*"aaabbbb"]
    )
    yield make("all_zero", RAGGED, np.zeros(RAGGED.shape), np.zeros(RAGGED.shape), np.zeros(6))
    near = 1000.0 + rng_of("offset").normal(size=6)
    yield make(
        "offset_1000",
        RAGGED,
        terminal(RAGGED, near),
        1000.0 + rng_of("offset_v").normal(size=RAGGED.shape),
        near + 1,
    )
    yield make("offset_close", RAGGED, terminal(RAGGED, 1000.1 + 0.25 * np.arange(6)), index=uids(*"aaabbb"))
    draws = rng_of("tiny").normal(size=(3, *RAGGED.shape))
    yield make("tiny_scale", RAGGED, 1e-4 * draws[0], 1e-4 * draws[1], 1e-4 * draws[2, :, 0])
    yield make("very_tiny_scale", RAGGED, 1e-6 * draws[0], 1e-6 * draws[1], 1e-6 * draws[2, :, 0])
    yield make("large_scale", RAGGED, 1e3 * draws[0], 1e3 * draws[1], 1e3 * draws[2, :, 0])


def filled(case_name, mask, fill):
    """Every input filled with `fill` at its masked positions; an all-masked row's baseline too."""
    case = make(case_name, mask)
    hole, empty = ~case.response_mask, ~case.response_mask.any(axis=1)
    return make(
        case_name,
        mask,
        np.where(hole, fill, case.token_level_rewards),
        np.where(hole, fill, case.values),
        np.where(empty, fill, case.reward_baselines),
    )


def masked_garbage():
    mask = np.vstack([HOLES, np.zeros((2, 7), dtype=bool)])
    for name, fill in (("nan", np.nan), ("inf", np.inf), ("minus_inf", -np.inf), ("big", 3e4)):
        yield filled(f"{name}_at_masked", mask, fill)


def spoiled(name, places, index=None, mask=RAGGED):
    """A case with the given rewards (row, valid position, reward) overwritten."""
    case = make(name, mask, index=index)
    rewards = case.token_level_rewards.copy()
    for b, k, reward in places:
        rewards[b, np.flatnonzero(mask[b])[k]] = reward
    return make(name, mask, rewards, index=index)


def bad_scores():
    groups = uids(*"aaabbb")
    yield spoiled("nan_score", [(0, 2, np.nan)], groups)
    yield spoiled("inf_score", [(3, -1, np.inf)], groups)
    yield spoiled("minus_inf_score", [(3, 0, -np.inf)], groups)
    yield spoiled("opposite_infs", [(0, 0, np.inf), (0, 1, -np.inf)], groups)
    yield spoiled("nan_score_holes", [(1, 1, np.nan), (4, -1, np.inf)], groups, HOLES)
    yield spoiled("nan_score_leaves_one", [(0, 0, np.nan), (3, 0, np.inf)])
    yield spoiled("all_scores_bad", [(b, 0, np.nan) for b in range(6)], groups)
    yield spoiled("one_score_good", [(b, -1, np.inf) for b in range(5)], groups)


def indices():
    mask = prefix_mask([3, 2, 4, 1, 4, 3], 4)
    yield make("singletons", mask, index=uids(*"abcdef"))
    yield make("one_group", mask, index=["same"] * 6)
    yield make("leading_zero_uids", mask, index=uids("1", "01", "1", "01", "001", "1"))
    yield make("int_and_str_uids", mask, index=uids(1, "1", 1, "1", "1", 1))
    yield make("int_uids", mask, index=[7, 3, 7, 3, 3, 7])
    yield make("negative_int_uids", mask, index=[-1, -2, -1, -1, -2, 0])
    yield make("large_int_uids", mask, index=[2**62, 5, 2**62 + 1, 5, 2**62, 2**62 + 1])
    yield make("numpy_int_uids", mask, index=uids(np.int64(1), 1, np.int64(2), 2, 1, 2))


def long():
    """Accuracy over a long response: process rewards and values of order 1, a terminal score, and an offset."""
    mask = prefix_mask([LONG, LONG - 1500], LONG)
    yield make("long_process", mask)
    yield make("long_terminal", mask, terminal(mask, [1.0, -0.5]), index=["g", "g"])
    case = make("long_offset", mask)
    yield make("long_offset", mask, case.token_level_rewards, 100.0 + case.values, index=["g", "g"])


SHORT = (*mask_shapes(), *reward_shapes(), *masked_garbage(), *bad_scores(), *indices())
LONG_CASES = tuple(long())
BY_NAME = {case.name: case for case in (*SHORT, *LONG_CASES)}


@dataclass(frozen=True)
class LossCase:
    """Inputs of the losses; one set serves policy and value losses."""

    name: str
    response_mask: np.ndarray
    old_log_prob: np.ndarray
    log_prob: np.ndarray
    advantages: np.ndarray
    vpreds: np.ndarray
    values: np.ndarray
    returns: np.ndarray


def make_loss(name, mask, spread=0.3, fill=0.0, log_ratio=None, advantages=None):
    """Log-ratios of about `spread`, so that some ratios are clipped on each side and some are not."""
    rng, mask = rng_of(name), np.asarray(mask, dtype=bool)
    draws = [rng.normal(size=mask.shape) for _ in range(6)]
    old = -np.abs(draws[0])
    new = old + (spread * draws[1] if log_ratio is None else np.broadcast_to(log_ratio, mask.shape))
    fields = [old, new, draws[2] if advantages is None else advantages, draws[3], draws[4], draws[5]]
    return LossCase(name, mask, *(np.where(mask, x, fill) for x in fields))


def loss_cases():
    yield make_loss("ragged_prefix", RAGGED)
    yield make_loss("holes", HOLES, fill=-7.0)
    yield make_loss("all_masked_rows", prefix_mask([3, 0, 4, 0], 5))
    yield make_loss("one_token", prefix_mask([0, 1], 3))
    yield make_loss("no_valid_token", np.zeros((2, 3)))
    yield make_loss("no_valid_token_nan", np.zeros((2, 3)), fill=np.nan)
    yield make_loss("width_one", np.ones((3, 1)))
    yield make_loss("zero_advantages", RAGGED, advantages=np.zeros(RAGGED.shape))
    yield make_loss("on_policy", RAGGED, log_ratio=0.0)
    yield make_loss("far_off_policy", RAGGED, spread=2.0)
    yield make_loss("log_ratio_clamped", RAGGED, log_ratio=np.linspace(-31.0, 29.0, 7))
    yield make_loss("large_random", rng_of("large_loss").random((16, 33)) < 0.7)
    for name, fill in (("nan", np.nan), ("inf", np.inf), ("minus_inf", -np.inf), ("big", 3e4)):
        yield make_loss(f"{name}_at_masked", np.vstack([HOLES, np.zeros((1, 7), dtype=bool)]), fill=fill)


LOSS_CASES = tuple(loss_cases())
