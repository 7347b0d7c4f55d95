"""The kernels: each backend against the recursion written out, with whatever a batch may hold.

``sequential`` is the definition, one token after the other in the working precision; numba's kernels equal it to the
bit, as verl's loop does, and the others to rounding. Backends that are not installed are skipped.
"""

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from batches import INF, NAN, batch, sequential

import rl_estimators
from rl_estimators import backends
from rl_estimators.backends import choose, torch_rows
from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS
from rl_estimators.whitening import whitened


def installed(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # in a process of its own, see test_triton.py
BACKENDS = [installed("torch"), installed("numba"), *(["triton"] if INTERPRETED else [])]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
DISCOUNTS = [(1.0, 1.0), (1.0, 0.95), (0.99, 0.95), (0.5, 0.0), (0.0, 1.0)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    with np.errstate(all="ignore" if INTERPRETED else None):  # triton's interpreter computes in numpy
        yield


@each_backend
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), DISCOUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fill", [NAN, INF])
def test_gae_is_the_recursion(backend, holes, gamma, lam, dtype, fill):
    """77 tokens: four whole chunks and a part; 13 rows: eight side by side, and those that take a lane that is free."""
    rewards, values, mask = batch(13, 77, holes=holes, dtype=dtype, fill=fill)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    close = 1e-12 if wide == torch.float64 else 2e-5
    for last in (None, torch.randn(13, generator=torch.Generator().manual_seed(1)).to(dtype)):
        wanted = sequential(rewards, values, mask, last, gamma, gamma * lam, wide)
        for kind in (torch.bool, torch.int64, torch.float32):
            with backends.use_backend(backend):
                actual = backends.gae(rewards, values, mask.to(kind), last, gamma, gamma * lam)
            for x, y in zip(actual, wanted, strict=False):
                assert x.dtype == wide
                torch.testing.assert_close(x, y, rtol=close, atol=close)
                assert backend != "numba" or torch.equal(x, y)
            assert torch.equal(actual.rows.number, mask.sum(-1))
            spread = torch.where(mask, wanted[0].double() - actual.rows.pivot[:, None], 0)
            torch.testing.assert_close(actual.rows.total, spread.sum(-1), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(actual.rows.squares, spread.square().sum(-1), rtol=1e-4, atol=1e-4)


@each_backend
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("rows", [7, 7000])  # one block or several
def test_a_mask_is_packed_if_it_is_one(backend, dtype, rows):
    """One odd number anywhere, and the mask comes back for who complains about it."""
    mask = torch.arange(90) < torch.randint(0, 91, (rows, 1), generator=torch.Generator().manual_seed(0))
    with backends.use_backend(backend):
        found = backends.packed(mask.to(dtype))
        assert found.dtype == torch.bool
        assert torch.equal(found, mask)
        assert torch.equal(backends.packed(mask.to(dtype).t()), mask.t())  # not contiguous
        for odd in (2, 3, 127, -1, torch.iinfo(dtype).max, torch.iinfo(dtype).max // 2 + 1):
            given = mask.to(dtype)
            given[-1, -1] = odd
            assert backends.packed(given) is given


@each_backend
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_whitening_in_place_is_whitening(backend, holes, side_by_side):
    """To the bit, also where rows do not lie side by side in memory."""
    numbers, _, mask = batch(6, 20, holes=holes, fill=0.0)
    x = numbers.clone() if side_by_side else numbers.t().contiguous().t()
    assert x.is_contiguous() == side_by_side
    with backends.use_backend(backend):
        how = (
            backends.moments(numbers, mask),
            *(torch.tensor(n, dtype=torch.float64) for n in (0.5, 0.25, 2.0)),
        )
        elsewhere = backends.standardise(numbers, mask, *how)
        backends.standardise(x, mask, *how, x)
    torch.testing.assert_close(x, torch.where(mask, (numbers - 0.75) * 2, 0))
    assert torch.equal(x, elsewhere)


@each_backend
def test_whitening_with_statistics_that_another_backend_read(backend):
    """Holes, a response that is excluded although it has tokens, and one without any."""
    numbers, _, mask = batch(6, 20, holes=True, fill=NAN)
    mask[1], mask[2] = False, True
    rows = torch_rows.moments(torch.where(mask, numbers, 0), mask)
    rows.number[2] = 0
    with backends.use_backend(backend):
        how = (torch.tensor(n, dtype=torch.float64) for n in (0.5, 0.25, 2.0))
        found = backends.standardise(numbers, mask, rows, *how)
    counts = mask & (torch.arange(6) != 2)[:, None]
    torch.testing.assert_close(found, torch.where(counts, (numbers - 0.75) * 2, 0))


def test_what_is_no_integer_mask_is_not_packed():
    for given in (
        torch.ones(2, 3),
        torch.ones(2, 3, dtype=torch.bool),
        torch.ones(3, dtype=torch.long),
        None,
        [[1]],
    ):
        assert backends.packed(given) is given


def test_a_mask_that_would_take_too_much_is_not_packed():
    """More than 24 Mi tokens, which are views of one number here."""
    mask = torch.ones(1, 1, dtype=torch.int8).expand(3 << 10, 9 << 10)
    assert backends.packed(mask) is mask


def test_a_users_function_gets_its_mask_as_it_is(monkeypatch):
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    seen = []

    @rl_estimators.register_adv_est("looks_at_its_mask")
    def looks(token_level_rewards, response_mask):
        seen.append(response_mask)
        return token_level_rewards, token_level_rewards

    mask = torch.ones(1, 2, dtype=torch.long)
    for masked_rewards in ("drop", "carry"):
        rl_estimators.estimate(
            "looks_at_its_mask",
            token_level_rewards=torch.ones(1, 2),
            response_mask=mask,
            masked_rewards=masked_rewards,
        )
    assert [given is mask for given in seen] == [True, True]


@each_backend
def test_strays_are_rewards_where_nobody_wrote(backend):
    rewards = torch.tensor(
        [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, NAN], [-0.0, 2.0, 0.0], [0.0, 0.0, INF]]
    )
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]])
    with backends.use_backend(backend):
        assert backends.strays(rewards, mask).tolist() == [False, True, True, False, False]
        assert backends.strays(rewards.bfloat16(), mask.bool()).tolist() == [False, True, True, False, False]


@each_backend
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0, "rows"])
def test_discounted_sums_are_the_recursion(backend, holes, discount):
    rewards, _, mask = batch(6, 77, holes=holes)
    zero, ones = torch.zeros_like(rewards), torch.ones(6)
    rates = torch.tensor([0.0, 0.3, 0.9, 1.0, 0.99, 0.5]) if discount == "rows" else ones * discount
    wanted = torch.cat(
        [
            sequential(
                rewards[b : b + 1], zero[b : b + 1], mask[b : b + 1], None, 1.0, rates[b], torch.float32
            )[0]
            for b in range(6)
        ]
    )
    given = rates if discount == "rows" else discount
    with backends.use_backend(backend):
        found = backends.discounted_sum(rewards, mask, given)
        ahead = backends.returns(rewards, mask.long(), given, torch.arange(6.0))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ahead.returns, wanted, rtol=1e-5, atol=1e-5)
    less = torch.where(mask, wanted - torch.arange(6.0)[:, None], 0)
    torch.testing.assert_close(ahead.advantages, less, rtol=1e-5, atol=1e-5)
    assert backend != "numba" or (torch.equal(found, wanted) and torch.equal(ahead.returns, wanted))


def recursion(rewards, values, mask, gamma, decay):
    """As ``sequential``, in numpy for long rows, with V after the end 0 and rows that are not finite excluded."""
    advantages, returns = np.zeros_like(rewards), np.zeros_like(rewards)
    for b in range(len(rewards)):
        later = following = np.float32(0)
        with np.errstate(all="ignore"):
            for t in np.flatnonzero(mask[b])[::-1]:
                value = values[b, t]
                later = rewards[b, t] + gamma * following - value + decay * later
                following = value
                advantages[b, t], returns[b, t] = later, later + value
        if not np.isfinite(later):
            advantages[b] = 0
            returns[b] = np.where(mask[b] & np.isfinite(values[b]), values[b], 0)
    return advantages, returns


@each_backend
def test_rows_of_several_tiles_side_by_side(backend):
    """Eleven rows in four lanes, of up to two tiles and a part; a lane takes its next row while others are at work.

    Rows 1 and 6 have no valid token, 2 and 9 a number that is not finite, 3 a tile without a valid token, 4 a hole at its
    end, 5 one token.
    """
    length = 2 * 4096 + 77
    rewards, values, mask = (x.numpy() for x in batch(11, length, fill=0.0, seed=4))
    mask[0] = True
    mask[[1, 6]] = False
    mask[3], mask[3, 4096:8192] = True, False
    mask[4], mask[4, -70:-1] = True, False
    mask[5], mask[5, 4096] = False, True
    mask[7:] &= np.random.default_rng(0).random((4, length)) > 0.2
    rewards[2, np.flatnonzero(mask[2])[3]], values[9, np.flatnonzero(mask[9])[-1]] = np.nan, np.inf
    rewards[~mask], values[~mask] = np.nan, np.nan
    gamma, decay = np.float32(0.99), np.float32(0.95)
    wanted = recursion(rewards, values, mask, gamma, decay)
    given = [torch.from_numpy(x) for x in (rewards, values, mask)]
    with backends.use_backend(backend):
        found = backends.gae(*given, None, float(gamma), float(decay))
        sums = backends.returns(given[0], given[2], float(decay), torch.ones(11))
    for x, y in zip(found, wanted, strict=False):
        torch.testing.assert_close(x, torch.from_numpy(y), rtol=2e-4, atol=2e-4)
        assert backend != "numba" or torch.equal(x, torch.from_numpy(y))
    counts = np.isin(np.arange(11), (1, 2, 6, 9), invert=True)
    assert torch.equal(found.rows.number, torch.from_numpy(mask.sum(1) * counts))
    assert torch.equal(found.rows.written, torch.from_numpy(mask.any(1)))
    plain, _ = recursion(rewards, np.zeros_like(values), mask, gamma, decay)
    torch.testing.assert_close(sums.returns, torch.from_numpy(plain), rtol=1e-4, atol=1e-4)
    sound = np.arange(11)[:, None] != 2  # row 9 has its inf among the values
    less = np.where(mask & sound, plain - 1, 0)
    torch.testing.assert_close(sums.advantages, torch.from_numpy(less), rtol=1e-4, atol=1e-4)


@each_backend
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("eps", "eps_in"), [(0.0, "variance"), (0.5, "variance"), (0.5, "std")])
def test_moments_of_all_rows_together(backend, by_row, ddof, eps, eps_in):
    """Against numpy's weighted mean and variance in fp64, around 1e4; one row has one token."""
    x, _, mask = batch(9, 50, holes=True, fill=0.0)
    mask[3] = torch.arange(50) == 7
    x += 1e4
    valid, numbers = mask.numpy(), x.double().numpy()
    weights = np.where(valid, 1 / np.maximum(valid.sum(1, keepdims=True), 1) if by_row else 1.0, 0.0)
    mean = (weights * numbers).sum() / weights.sum()
    variance = (weights * (numbers - mean) ** 2).sum() / (weights.sum() - ddof)
    with backends.use_backend(backend):
        rows = backends.moments(x, mask)
        pivot, shift, scale = backends.pooled(rows, by_row, ddof, eps, eps_in)
    assert float(pivot + shift) == pytest.approx(mean, rel=1e-12)
    size = np.sqrt(variance + eps) if eps_in == "variance" else np.sqrt(variance) + eps
    assert float(scale) == pytest.approx(1 / size, rel=1e-6)
    assert torch.equal(rows.number, mask.sum(-1))
    assert torch.equal(rows.written, mask.any(-1))


@each_backend
@pytest.mark.parametrize("eps_in", ["variance", "std"])
def test_what_does_not_differ_has_no_scale(backend, eps_in):
    """1 over a spread of 0 and an epsilon of 0; the last row alone counts, and is its own pivot."""
    x, mask = torch.full((3, 4), 0.1), torch.zeros(3, 4)
    mask[2, 1:3] = 1
    with backends.use_backend(backend):
        pivot, shift, scale = backends.pooled(backends.moments(x, mask), False, 1.0, 0.0, eps_in)
    assert (float(pivot), float(shift), float(scale)) == (x[0, 0].item(), 0.0, 0.0)


@each_backend
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("read", [False, True])
def test_a_number_is_spread_over_its_row(backend, holes, read):
    """With what was read of the mask and without; an excluded response's number is 0."""
    rewards, _, mask = batch(9, 50, holes=holes)
    mask[2, :3], rewards[2, :3] = True, INF
    with backends.use_backend(backend):
        rows = backends.scores(rewards, mask.long())
        numbers = torch.where(rows.counts, torch.arange(1.0, 10.0), 0)
        found = backends.spread(numbers, mask.long(), rows if read else None)
    expected = np.where(mask.numpy(), np.arange(1.0, 10.0)[:, None], 0)
    expected[2] = 0
    assert np.array_equal(found.numpy(), expected)


@each_backend
def test_a_response_that_is_not_finite_is_excluded(backend):
    """Advantage 0; returns are the old values, where finite; the others are as if it were not there."""
    rewards, values, mask = batch(4, 9, fill=0.0)
    mask[:, :3] = True
    rewards[1, 1], values[2, 0] = NAN, INF
    with backends.use_backend(backend), rl_estimators.collect_metrics() as metrics:
        found = rl_estimators.estimate(
            "gae", token_level_rewards=rewards, values=values, response_mask=mask, whiten=False
        )
        alone = backends.gae(rewards[[0, 3]], values[[0, 3]], mask[[0, 3]], None, 1.0, 1.0)
    assert metrics["excluded_responses"] == 2
    assert (found.advantages[1:3] == 0).all()
    kept = torch.where(mask & values.isfinite(), values, 0)
    assert torch.equal(found.returns[1:3], kept[1:3])
    torch.testing.assert_close(found.advantages[[0, 3]], alone.advantages)


@each_backend
def test_a_sum_that_overflows_is_excluded_and_counted(backend):
    """2e38 + 2e38 is beyond fp32 and not beyond fp64; 1e38 + 1e38 is within both.

    So is a reward less the value before it, also where little of it would reach a token further left.
    """
    x, mask, zero = torch.tensor([[2e38, 2e38], [1e38, 1e38]]), torch.ones(2, 2), torch.zeros(2, 2)
    apart = torch.tensor([[3e38, 0.0], [1e38, 0.0]])
    with backends.use_backend(backend), rl_estimators.collect_metrics() as metrics:
        found = [
            backends.gae(x, zero, mask, None, 1.0, 1.0).rows,
            backends.gae(apart, -apart, mask, None, 0.9, 0.5).rows,
            backends.returns(x, mask, 1.0).rows,
            backends.returns(x, mask, 1.0, torch.zeros(2)).rows,
            backends.scores(x, mask),
        ]
        wide = backends.scores(x.double(), mask)
    assert [rows.number.tolist() for rows in found] == [[0, 2]] * 5
    assert metrics["excluded_responses"] == 5
    assert wide.number.tolist() == [2, 2]


@each_backend
def test_a_baseline_that_is_not_finite_excludes_its_row(backend):
    """And so does one that a sum is further from than fp32 reaches. A row without tokens is not counted as excluded."""
    x, mask = torch.tensor([[1.0, NAN, 2.0]] * 4 + [[3e38, NAN, 0.0]] * 2), torch.tensor([[1, 0, 1]] * 6)
    mask[5] = 0
    baselines = torch.tensor([NAN, INF, -INF, 1.0, -3e38, NAN])
    with backends.use_backend(backend), rl_estimators.collect_metrics() as metrics:
        found = backends.returns(x, mask, 0.5, baselines)
    assert found.rows.number.tolist() == [0, 0, 0, 2, 0, 0]
    assert found.rows.written.tolist() == [True] * 5 + [False]
    assert metrics["excluded_responses"] == 4
    assert found.advantages[3].tolist() == [1.0, 0.0, 1.0]  # 1 + 2 / 2 and 2, less 1
    assert found.returns[3].tolist() == [2.0, 0.0, 2.0]
    others = torch.tensor([0, 1, 2, 4, 5])
    assert (found.advantages[others] == 0).all()
    assert (found.returns[others] == 0).all()


@each_backend
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1)])
def test_empty_and_tiny_shapes(backend, shape):
    x, mask = torch.ones(shape), torch.ones(shape, dtype=torch.bool)
    with backends.use_backend(backend):
        for name in ("gae", "reinforce_pp"):
            found = rl_estimators.estimate(name, token_level_rewards=x, values=x, response_mask=mask)
            assert found.advantages.shape == found.returns.shape == shape
            assert (found.advantages == 0).all()  # nothing differs


@each_backend
def test_strided_inputs_are_read_as_they_are(backend):
    rewards, values, mask = batch(6, 40, fill=0.0)
    wanted = backends.gae(rewards, values, mask, None, 0.9, 0.8)
    other = [torch.stack([x, x], dim=-1).permute(2, 0, 1)[0] for x in (rewards, values, mask)]
    assert not other[0].is_contiguous()
    with backends.use_backend(backend):
        actual = backends.gae(*other, None, 0.9, 0.8)
    torch.testing.assert_close(actual.advantages, wanted.advantages)


@each_backend
def test_a_smaller_tensor_is_refused_where_nobody_has_checked_inputs(backend):
    """A compiled kernel would read on beyond its end."""
    x, mask, wrong = torch.zeros(2, 4), torch.ones(2, 4), "has shape (2, 1), where its batch has (2, 4)"
    calls = (
        lambda: rl_estimators.get_adv_est("gae")(x, x[:, :1], mask),
        lambda: rl_estimators.get_adv_est("reinforce_pp")(x, mask[:, :1]),
        lambda: rl_estimators.get_adv_est("grpo")(x, mask[:, :1], ["a", "b"]),
        lambda: backends.moments(x, mask[:, :1]),
        lambda: backends.strays(x, mask[:, :1]),
        lambda: backends.discounted_sum(x, mask[:, :1], 0.9),
    )
    with backends.use_backend(backend):
        for call in calls:
            with pytest.raises(InputError, match=re.escape(wrong)):
                call()
        with pytest.raises(InputError, match=re.escape("has shape (1,), where its batch has (2,)")):
            rl_estimators.get_adv_est("remax")(x, mask, torch.zeros(1))
        with pytest.raises(InputError, match=re.escape("has shape (3,), where its batch has (2,)")):
            backends.spread(torch.zeros(3), mask)


@each_backend
def test_several_threads_compute_what_one_does(backend):
    rewards, values, mask = batch(67, 3000, holes=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with backends.use_backend(backend):
                found.append(backends.gae(rewards, values, mask, None, 0.99, 0.95))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0].advantages, found[1].advantages)
    torch.testing.assert_close(found[0].rows.squares, found[1].rows.squares)


@each_backend
@pytest.mark.parametrize("decay", [1.0, 0.95, 0.9405])
def test_accuracy_at_32768_tokens(backend, decay):
    """Against fp64, relative to the largest advantage: 1e-6; 6e-6 for the plain sum of 32768 numbers."""
    rewards, values, mask = batch(2, 32768, fill=0.0)
    mask[:] = True
    wide = backends.gae(rewards.double(), values.double(), mask, None, 1.0, decay).advantages
    check, _ = sequential(
        rewards[:1, -50:], values[:1, -50:], mask[:1, -50:], None, 1.0, decay, torch.float64
    )
    torch.testing.assert_close(wide[:1, -50:], check)
    with backends.use_backend(backend):
        found = backends.gae(rewards, values, mask, None, 1.0, decay).advantages
    assert (found - wide).abs().max() <= (6e-6 if decay == 1 else 1e-6) * wide.abs().max()


@each_backend
def test_whitening_equal_numbers_is_exactly_zero(backend):
    """0.1 in fp32 has no exact mean in fp32; a far pivot would leave rounding errors over a spread of 0."""
    x, mask = torch.full((7, 50), 0.1), batch(7, 50, holes=True)[2]
    with backends.use_backend(backend):
        assert (whitened(x.masked_fill(~mask, NAN), mask) == 0).all()


@each_backend
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_whitened_moments(backend, offset):
    """Spread 1 on 1e4 in fp32: inputs are known to 5e-4, and their mean must not cost more digits."""
    x, _, mask = batch(9, 70, holes=True)
    x = x + offset
    kept = x[mask].double()
    with backends.use_backend(backend):
        found = whitened(x, mask)
    torch.testing.assert_close(found[mask].double(), (kept - kept.mean()) / kept.std(), rtol=1e-5, atol=1e-5)
    assert (found[~mask] == 0).all()


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_makes_its_own_threads():
    """A data loader forks its workers, and threads do not come along: who waits for them waits for ever."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, env=environment, timeout=400)


FORK = """
import os, signal, torch
from rl_estimators import backends
torch.set_num_threads(2)
rewards, mask = torch.ones(64, 9000), torch.ones(64, 9000, dtype=torch.bool)
backends.scores(rewards, mask)
if not os.fork():
    signal.alarm(30)
    os._exit(0 if backends.scores(rewards, mask).total.eq(9000).all() else 1)
assert os.wait()[1] == 0
"""


@each_backend
def test_options_may_be_0_dim_tensors(backend):
    x, mask, half = torch.randn(3, 4), torch.ones(3, 4), torch.tensor(0.5)
    given = {
        "token_level_rewards": x,
        "values": -x,
        "response_mask": mask,
        "reward_baselines": torch.zeros(3),
    }
    for name, options in (("gae", ("gamma", "lam")), ("reinforce_pp", ("gamma",)), ("mc", ("gamma",))):
        found, wanted = (
            rl_estimators.estimate(name, **given, **dict.fromkeys(options, value), backend=backend)
            for value in (half, 0.5)
        )
        torch.testing.assert_close(found.returns, wanted.returns)


@each_backend
def test_no_gradient_goes_through(backend):
    """A function of the registry may be called as it is, with a critic's values that are in training."""
    x, mask = torch.randn(3, 4), torch.ones(3, 4)
    values = torch.randn(3, 4, requires_grad=True)
    with backends.use_backend(backend):
        found = rl_estimators.get_adv_est("gae")(x, values, mask)
    assert not found.advantages.requires_grad
    assert not found.returns.requires_grad
