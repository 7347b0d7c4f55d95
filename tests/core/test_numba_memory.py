"""Reading ahead and writing past the cache change where numbers are on the way, and none of them."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import numba

from rl_estimators import backends
from rl_estimators.backends import numba_memory, numba_rows, numba_sums
from rl_estimators.backends.memory import large


@numba.njit
def put(out, start, stop, source):
    numba_memory.put(out, start, stop, source)
    numba_memory.settle()


@numba.njit
def piece_of(x, start, size):
    return numba_memory.piece(x, start, size).sum()


@numba.njit
def ask(x, start, stop):
    numba_memory.ask(x, start, stop)
    return x[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 17, 40, 300])
def test_what_is_put_is_there_and_nothing_else(dtype, size):
    """From each place within a line of 64 bytes on."""
    source = np.arange(1, size + 1, dtype=dtype)
    for start in range(20):
        out = np.zeros(400, dtype)
        put(out, start, start + size, source)
        assert out[start : start + size].tolist() == source.tolist()
        assert not out[:start].any()
        assert not out[start + size :].any()


def test_a_piece_is_a_part_of_the_array():
    x = np.arange(100.0)
    assert piece_of(x, 3, 5) == 3 + 4 + 5 + 6 + 7
    assert piece_of(x, 3, 0) == 0


def test_asking_for_what_is_not_there_does_nothing():
    x = np.ones(8, np.float32)
    assert ask(x, -(1 << 40), -(1 << 40) + 64) == 1
    assert ask(x, 1 << 40, (1 << 40) + 64) == 1
    assert ask(x, 8, 0) == 1


@pytest.mark.parametrize("length", [*range(1, 34), 255 * 8 - 1, 255 * 8, 255 * 8 + 9, 5000])
def test_counting_eight_bytes_at_a_time(length):
    """All valid, so that each byte of the sum is as full as it can get; none; and a few, at each end."""
    for mask in (np.ones(length, np.uint8), np.zeros(length, np.uint8), np.arange(length) % 3 == 1):
        valid = np.ascontiguousarray(mask).view(np.uint8)
        number, extent = numba_sums.look(valid)
        assert number == int(valid.sum())
        assert extent == max((t + 1 for t in range(length) if valid[t]), default=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("holes", [False, True])
def test_a_large_batch_is_many_small_ones(dtype, holes):
    """To the bit: what is large goes past the cache. Rows begin anywhere in a line, some are empty, some excluded."""
    rows, length = 1100, 1003
    seed = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.randint(0, length + 1, (rows, 1), generator=seed)
    if holes:
        mask &= torch.rand(rows, length, generator=seed) > 0.1
    numbers = [torch.randn(rows, length, generator=seed, dtype=dtype) for _ in range(2)]
    rewards, values = (torch.where(mask, x, torch.nan) for x in numbers)
    rewards[3, 0], mask[3, 0] = torch.inf, True
    baselines = torch.randn(rows, generator=seed, dtype=dtype)
    assert large(rewards)
    assert not large(rewards[:100])

    def everything(some):
        x, v, on, less = rewards[some], values[some], mask[some], baselines[some]
        scan = numba_rows.gae(x, v, on, None, 1.0, 0.95)
        ahead = numba_rows.returns(x, on, 1.0, less)
        scored = numba_rows.scores(x, on)
        found = [scan.advantages, scan.returns, ahead.advantages, ahead.returns, scored.total]
        found.append(backends.standardise(scan.advantages, on, scan.rows, 0.5, 0.25, 2.0))
        found.append(numba_rows.spread(torch.where(scored.counts, less, 0), on, scored))
        found.append(numba_rows.spread(less, on))
        return [x.clone() for x in found]

    with backends.use_backend("numba"):
        whole = everything(slice(None))
        parts = [everything(slice(low, low + 100)) for low in range(0, rows, 100)]
    for n, found in enumerate(whole):
        assert torch.equal(found, torch.cat([part[n] for part in parts]))
        assert found.isfinite().all()
