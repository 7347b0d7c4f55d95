"""The numerical traps of verl, for every registered estimator: the list is the registry's.

That verl's own functions fall in is in test_traps.py; here it is only that none of ours does.
"""

import math

import numpy as np
import pytest
import torch
from reference import cases

import rl_estimators
from rl_estimators.registry import ADV_ESTIMATORS

NAMES = rl_estimators.list_adv_est()
GROUPED = [name for name in NAMES if "index" in ADV_ESTIMATORS.spec(name).required]
HAVE_CRITIC = [name for name in NAMES if "values" in ADV_ESTIMATORS.spec(name).required]
WHITENED = [name for name in NAMES if "whitening" in ADV_ESTIMATORS.spec(name).options]

each = pytest.mark.parametrize("name", NAMES)


def batch(mask, dtype=torch.float64, seed=0):
    """Everything that any estimator asks for; scores of at least 0, for maxrl."""
    rng, mask = np.random.default_rng(seed), np.asarray(mask, dtype=bool)
    rows = len(mask)

    def drawn(*shape):
        return torch.tensor(rng.random(shape)).to(dtype)

    return {
        "token_level_rewards": drawn(*mask.shape),
        "response_mask": torch.tensor(mask),
        "values": drawn(*mask.shape),
        "index": [b % 2 for b in range(rows)],
        "reward_baselines": drawn(rows),
        "reward_components": drawn(rows, 2),
        "old_log_probs": -drawn(*mask.shape),
        "ref_log_prob": -drawn(*mask.shape),
        "truncated": torch.tensor(np.arange(rows) % 3 == 0),
        "bootstrap_values": drawn(rows),
    }


def same(one, other):
    assert torch.equal(one.advantages, other.advantages)
    assert torch.equal(one.returns, other.returns)


def filled(inputs, fill):
    """``fill`` at every masked position of what has one."""
    mask = inputs["response_mask"] != 0
    two = [
        n
        for n, x in inputs.items()
        if isinstance(x, torch.Tensor) and x.shape == mask.shape and n != "response_mask"
    ]
    return {**inputs, **{name: inputs[name].masked_fill(~mask, fill) for name in two}}


@each
@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 3e4])
def test_padding_and_holes_are_never_read(name, fill):
    inputs = batch(cases.HOLES)
    options = {"beta": 0.1} if name == "remax" else {}
    got = rl_estimators.estimate(name, **filled(inputs, fill), **options)
    same(got, rl_estimators.estimate(name, **filled(inputs, 0.0), **options))
    assert got.advantages.isfinite().all()


@each
def test_outputs_are_0_at_holes(name):
    """Returns as well, whatever value stands there."""
    inputs = batch(cases.HOLES)
    for output in rl_estimators.estimate(name, **inputs):
        assert (output[~inputs["response_mask"]] == 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_a_bool_mask_is_a_mask(name, dtype):
    inputs = batch(cases.HOLES)
    other = {**inputs, "response_mask": inputs["response_mask"].to(dtype)}
    same(rl_estimators.estimate(name, **other), rl_estimators.estimate(name, **inputs))


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_fp32(name, dtype):
    """1024 tokens: to the last bit what the same numbers give as fp32."""
    low = batch(np.ones((4, 1024)), dtype)
    up = {n: x.float() if isinstance(x, torch.Tensor) and x.dtype == dtype else x for n, x in low.items()}
    got = rl_estimators.estimate(name, **low)
    assert got.advantages.dtype == got.returns.dtype == torch.float32
    same(got, rl_estimators.estimate(name, **up))


@each
@pytest.mark.parametrize(
    "mask",
    [np.zeros((2, 3)), np.eye(2, 3) * [[0], [1]], np.zeros((0, 3)), np.zeros((2, 0))],
    ids=["none", "one", "no rows", "no columns"],
)
def test_few_valid_tokens_or_none(name, mask):
    """0 where nothing is left to compare with; finite in any case."""
    got = rl_estimators.estimate(name, **batch(mask))
    assert got.advantages.isfinite().all()
    assert got.returns.isfinite().all()
    if name in GROUPED or (name in WHITENED and name != "reinforce"):
        assert (got.advantages == 0).all()


@pytest.mark.parametrize("name", [name for name in WHITENED if name not in GROUPED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", range(1, 9))
def test_a_constant_batch_has_no_advantage(name, rows, dtype):
    """Rewards of 1000.1 at the end, values of 0: for some numbers of rows a mean in fp32 would be off."""
    inputs = batch(np.ones((rows, 1)), dtype)
    inputs |= {"values": torch.zeros(rows, 1, dtype=dtype), "truncated": None, "bootstrap_values": None}
    inputs["token_level_rewards"] = torch.full((rows, 1), 1000.1, dtype=dtype)
    on = {} if name == "reinforce_pp" else {"whiten": True}
    assert (rl_estimators.estimate(name, **inputs, **on).advantages == 0).all()


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("score", [0.7, 1000.1, 1e-6])
@pytest.mark.parametrize("rows", range(1, 9))
def test_equal_scores_are_worth_exactly_nothing(name, rows, score):
    inputs = batch(np.ones((rows, 1)), torch.float32)
    inputs |= {"token_level_rewards": torch.full((rows, 1), score), "index": ["q"] * rows}
    inputs["reward_components"] = torch.full((rows, 2), score)
    assert (rl_estimators.estimate(name, **inputs).advantages == 0).all()


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    "index",
    [["1", "01", "1", "01"], [1, "1", 1, "1"], [2**62, 3, 2**62, 3], torch.tensor([-1, 7, -1, 7])],
    ids=["text", "kinds", "large", "tensor"],
)
def test_uids_are_names(name, index):
    """The same groups by other names: the same numbers, to the last bit, and no array as long as a uid is large."""
    inputs = batch(np.ones((4, 3)))
    same(
        rl_estimators.estimate(name, **{**inputs, "index": index}),
        rl_estimators.estimate(name, **{**inputs, "index": ["a", "b", "a", "b"]}),
    )


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_one_gets_nothing(name):
    """By default; and in a batch of other groups nobody else is moved by its score."""
    inputs = batch(np.ones((5, 2)))
    inputs["index"] = ["a", "b", "a", "b", "alone"]
    far = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    far["token_level_rewards"][4] += 1000
    far["reward_components"][4] += 1000
    one, other = (rl_estimators.estimate(name, **given).advantages for given in (inputs, far))
    if name not in ("reinforce_pp_baseline",):  # over tokens the batch's mean is subtracted from it as well
        assert (one[4] == 0).all()
    assert torch.equal(one, other)


@each
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_score_beyond_its_dtype_is_as_one_that_is_not_finite(name, backend):
    """3e38 + 3e38 in fp32: both numbers are finite, their sum is not; the response is left out, and counted."""
    if backend == "numba":
        pytest.importorskip("numba")
    inputs = batch(np.ones((6, 2)), torch.float32) | {"truncated": None, "bootstrap_values": None}
    found = []
    for score in (3e38, math.nan):
        rewards = inputs["token_level_rewards"].clone()
        rewards[0] = score
        with rl_estimators.collect_metrics() as metrics:
            found.append(
                rl_estimators.estimate(name, **inputs | {"token_level_rewards": rewards}, backend=backend)
            )
        assert metrics["excluded_responses"] == 1
    same(*found)
    assert (found[0].advantages[0] == 0).all()
    assert found[0].advantages.isfinite().all()
