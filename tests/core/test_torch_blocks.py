"""torch's kernels work in blocks of rows, pieces of long rows and chunks of tokens: what is cut must fit together again."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from batches import INF, NAN, batch, sequential

from rl_estimators import backends
from rl_estimators.backends import choose, torch_rows, torch_scan
from rl_estimators.backends.rows import Rows


def test_rows_longer_than_a_piece(monkeypatch):
    """Pieces of 40 columns hand their carry on, over pieces without a valid token too."""
    monkeypatch.setattr(torch_rows, "_PIECE", 40)
    rewards, values, mask = batch(5, 200, holes=True)
    mask[0, 60:140] = False
    rewards, values = rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN)
    last = torch.randn(5)
    wanted = sequential(rewards, values, mask, last, 0.99, 0.9, torch.float32)
    found = torch_rows.gae(rewards, values, mask, last, 0.99, 0.9)
    torch.testing.assert_close(found.advantages, wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.returns, wanted[1], rtol=1e-5, atol=1e-5)
    for discount in (1.0, 0.9):
        zero = torch.zeros_like(values)
        sums, _ = sequential(rewards, zero, mask, None, 1.0, discount, torch.float32)
        torch.testing.assert_close(
            torch_rows.discounted_sum(rewards, mask, discount), sums, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("holes", [False, True])
def test_a_block_s_statistics_are_not_overwritten_by_the_next(monkeypatch, dtype, discount, holes):
    """Those of nine rows, two at a time in memory that is used again, against numpy's."""
    monkeypatch.setattr(torch_rows, "block_elements", lambda x: 2 * x.shape[1])
    rewards, values, mask = batch(9, 37, holes=holes, dtype=dtype)
    scans = (
        torch_rows.gae(rewards, values, mask, None, 1.0, discount),
        torch_rows.returns(rewards, mask, discount),
    )
    for advantages, _, rows in scans:
        for b, (x, on) in enumerate(zip(advantages.double().numpy(), mask.numpy(), strict=True)):
            apart = x[on] - rows.pivot[b].item()
            assert 0 in apart
            wanted = [on.sum(), apart.sum(), (apart**2).sum()]
            found = [rows.number[b], rows.total[b], rows.squares[b]]
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("length", [37, 48])  # chunks of 16 fill a row or do not
def test_kernels_give_the_same_in_blocks(monkeypatch, dtype, holes, length):
    """One block or five: a response that is excluded, one that is empty and a stray reward among them.

    To rounding, as products of matrices of another size add in another order.
    """
    rewards, values, mask = batch(9, length, holes=holes, dtype=dtype, fill=0.0)
    mask[3], mask[5, 0] = False, True
    rewards[5, 0], rewards[1, ~mask[1]] = INF, 1
    baselines, numbers = torch.randn(9, dtype=dtype), torch.where(mask, values, 0)

    def found(rows_in_a_block):
        monkeypatch.setattr(torch_rows, "block_elements", lambda x: rows_in_a_block * length)
        discounts = torch.linspace(0.5, 1, 9, dtype=dtype)
        for scan in (
            torch_rows.gae(rewards, values, mask, baselines, 0.9, 0.8),
            *(torch_rows.returns(rewards, mask, discount) for discount in (1.0, 0.9, discounts)),
            *(torch_rows.returns(rewards, mask, discount, baselines) for discount in (1.0, 0.9)),
        ):
            rows = scan.rows
            yield from (scan.advantages, scan.returns, rows.number, rows.written, rows.excluded)
            if type(rows) is Rows:
                yield from (rows.pivot, rows.total, rows.squares)
        for rows in (torch_rows.scores(rewards, mask), torch_rows.moments(numbers, mask)):
            yield from vars(rows).values()
        yield torch_rows.standardise(numbers, mask, rows, 0.1, 0.2, 3.0, torch.empty_like(values))
        yield from (torch_rows.spread(baselines, mask), torch_rows.strays(rewards, mask))
        yield from (torch_rows.discounted_sum(numbers, mask, 0.9), torch_rows.pack(mask.long()))

    whole, tolerance = [*found(9)], 1e-5 if dtype == torch.float32 else 1e-12
    assert len(whole) > 50
    for one, other in zip(whole, found(2), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 15, 16, 64, 1024, 33 * 16])
@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_chunks_put_together_are_the_sum(length, discount):
    """y_t = sum over j of d^(j - t) x_j, by a matrix of the row's whole length."""
    x = torch.randn(3, length, dtype=torch.float64)
    apart = torch.arange(length)[:, None] - torch.arange(length)
    matrix = torch.where(apart >= 0, float(discount) ** apart.clamp(min=0).double(), 0)
    torch.testing.assert_close(torch_scan.reverse_scan(x.clone(), discount), x @ matrix)


@pytest.mark.parametrize("precision", ["medium", "autocast"])
def test_a_network_s_precision_does_not_reach_advantages(precision):
    x, mask = torch.randn(4, 2048), torch.ones(4, 2048, dtype=torch.bool)
    wanted = backends.discounted_sum(x.double(), mask, 0.99)
    before = torch.get_float32_matmul_precision()
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            torch.set_float32_matmul_precision("highest" if precision == "autocast" else precision)
            found = torch_rows.discounted_sum(x, mask, 0.99)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_torch_s_kernels_need_little_memory():
    """At most 32 MiB beyond the outputs: the growth of the peak in a process of its own, 512 x 8192 and 2 x 2^22."""
    code = """
import resource, torch
from rl_estimators import backends
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for rows, length in ((512, 8192), (2, 1 << 22)):
    x, mask = torch.zeros(rows, length), torch.ones(rows, length, dtype=torch.bool)
    mask[:, 5::7] = False
    backends.gae(x[:1, :64], x[:1, :64], mask[:1, :64], None, 1.0, 0.9)
    before = peak()
    found = backends.gae(x, x, mask, None, 1.0, 0.9)
    print("EXTRA", peak() - before - 2 * x.numel() * 4 // 2**20)
"""
    environment = {**os.environ, choose.VARIABLE: "torch", "OMP_NUM_THREADS": "1"}
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    extra = [int(line.split()[1]) for line in printed.splitlines()]
    assert len(extra) == 2
    assert max(extra) <= 32, extra
