"""Triton's kernels in its interpreter, on the CPU: against tests/reference, in blocks of eight tokens and rows.

Whether triton interprets is settled when it is imported, so these tests have a process of their own, which
``test_triton.py`` starts, as it does for the triton cases of ``test_backends.py``; elsewhere they are skipped.
"""

import os
from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pytest
import torch
from reference import cases, tolerance
from reference import definitions as ref
from reference.tensors import arrays_of, epsilon_of, tensors_of, working_dtype

import rl_estimators
from rl_estimators import backends
from rl_estimators.backends import Rows
from rl_estimators.whitening import whitened

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("triton does not interpret here", allow_module_level=True)

NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float32, torch.bfloat16)
VARIANTS = {
    "gae": [
        {},
        {"gamma": 0.99, "lam": 0.95},
        {"gamma": 0.9, "lam": 0.0, "whiten": False},
        {"gamma": 0.0, "lam": 0.5},
    ],
    "grpo": [{}],
    "reinforce_pp": [{}, {"gamma": 0.5}],
    "remax": [{}, {"gamma": 0.9}],
}


@pytest.fixture(autouse=True)
def in_triton(monkeypatch):
    """All with triton's kernels; none of torch's stands in for one of them but in fp64."""
    triton_rows = pytest.importorskip("rl_estimators.backends.triton_rows")
    monkeypatch.setattr(triton_rows, "_BLOCK", 8)
    monkeypatch.setattr(triton_rows, "_LEAST", 8)
    with backends.use_backend("triton"), np.errstate(all="ignore"):  # numpy's warnings are the interpreter's
        assert backends.choose.backend_for(torch.ones(1)) is triton_rows
        yield


def check(name, options, case, dtype):
    arrays = arrays_of(case, ref.INPUTS[name], dtype)
    wanted = ref.ESTIMATORS[name](**arrays, **options)
    bounds = tolerance.BOUNDS[name](arrays, options, epsilon_of(dtype))
    found = rl_estimators.estimate(name, **tensors_of(case, ref.INPUTS[name], dtype), **options)
    for field, bound in zip(("advantages", "returns"), bounds, strict=True):
        actual = getattr(found, field)
        assert actual.dtype == working_dtype(dtype), f"{case.name}: {field}"
        actual = actual.double().numpy()
        assert (np.abs(actual - getattr(wanted, field)) <= bound).all(), f"{case.name}: {field}"
        assert (actual[~case.response_mask] == 0).all(), f"{case.name}: {field}"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_reference_s_cases(name):
    """Options and dtypes in turn: each case in all of them would take minutes, and what differs is little."""
    some = [case for case in cases.SHORT if name == "grpo" or not case.name.endswith("uids")]
    for case, (options, dtype) in zip(some, cycle(product(VARIANTS[name], DTYPES)), strict=False):
        check(name, options, case, dtype)


def test_long_responses(monkeypatch):
    """4096 tokens in blocks of their usual size."""
    monkeypatch.setattr("rl_estimators.backends.triton_rows._BLOCK", 1024)
    for case in cases.LONG_CASES:
        check("gae", {"gamma": 1.0, "lam": 0.95}, case, torch.float32)


def test_a_batch_in_fp64_is_torch_s():
    x, mask = torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([[1, 0, 1]])
    assert torch.equal(backends.discounted_sum(x, mask, 0.5), torch.tensor([[2.5, 0.0, 3.0]]).double())
    found = whitened(x, mask)
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), 0.0, 0.5**0.5]]).double())


def functions(rewards, values, mask):
    """Every function of the backend, on one batch."""
    rows = backends.moments(values, mask)
    less = torch.arange(float(len(mask)))
    return {
        "gae": backends.gae(rewards, values, mask, less, 0.9, 0.8),
        "returns": backends.returns(rewards, mask, 0.9, less),
        "discounted_sum": backends.discounted_sum(rewards, mask, torch.full((len(mask),), 0.9)),
        "moments": rows,
        "scores": backends.scores(rewards, mask),
        "strays": backends.strays(rewards, mask),
        "spread": backends.spread(less, mask),
        "whitened": whitened(values, mask),
    }


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [y for x in (vars(found).values() if isinstance(found, Rows) else found) for y in tensors(x)]


def small_batch():
    """Rows with holes, with none, and without a token, in two blocks."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 12, generator=draw) > 0.4
    mask[1] = torch.arange(12) < 9
    mask[2] = False
    rewards, values = (torch.randn(3, 12, generator=draw).masked_fill(~mask, NAN) for _ in range(2))
    return rewards, values, mask


def apart(x):
    """The same numbers, every second row of a tensor."""
    return torch.stack([x, x], 1).flatten(0, 1)[::2]


def across(x):
    """The same numbers, columns side by side."""
    return x.t().contiguous().t()


def assert_same(found, wanted):
    for name in wanted:
        for x, y in zip(tensors(found[name]), tensors(wanted[name]), strict=True):
            assert torch.equal(x, y), name


def test_rows_may_lie_anywhere():
    """Those of one input, while the others' lie side by side."""
    given = small_batch()
    wanted = functions(*given)
    for lay in (apart, across):
        for place in range(3):
            assert_same(functions(*(lay(x) if n == place else x for n, x in enumerate(given))), wanted)


def test_a_mask_may_have_any_dtype():
    """And hold anything but 0 on a valid token: nobody looks on a device."""
    rewards, values, mask = small_batch()
    wanted = functions(rewards, values, mask)
    for kind, on in ((torch.int64, 256), (torch.int8, -1), (torch.float64, 0.5), (torch.bfloat16, 1)):
        assert_same(functions(rewards, values, mask.to(kind) * on), wanted)


def test_what_is_known_of_each_row():
    """By hand: four rows of 20 tokens in three blocks, the pivot the last valid number."""
    mask = torch.zeros(4, 20)
    mask[0, [1, 9, 18]] = 1
    mask[1, :3] = 1
    mask[3, 4:6] = 1
    x = torch.full((4, 20), NAN)
    x[0, [1, 9, 18]] = torch.tensor([5.0, 7.0, 10.0])
    x[1, :3] = torch.tensor([1.0, 2.0, 4.0])
    x[3, 4:6] = torch.tensor([3e38, 3e38])
    moments, scores = backends.moments(x, mask), backends.scores(x, mask)
    for rows in (moments, scores):
        assert rows.written.tolist() == [True, True, False, True]
        assert rows.written.dtype == torch.bool
        assert (rows.number.dtype, rows.extent.dtype) == (torch.int64, torch.int64)
    assert moments.number.tolist() == [3, 3, 0, 2]
    assert moments.extent.tolist() == [19, 3, 0, 6]
    assert moments.pivot.tolist() == [10.0, 4.0, 0.0, x[3, 4].item()]
    assert moments.total.tolist() == [-8.0, -5.0, 0.0, 0.0]
    assert moments.squares.tolist() == [34.0, 13.0, 0.0, 0.0]
    assert scores.number.tolist() == [3, 3, 0, 0]  # the last one's sum is beyond fp32
    assert scores.extent.tolist() == [19, 3, 0, 0]
    assert scores.total.tolist() == [22.0, 7.0, 0.0, 0.0]
    assert scores.pivot.tolist() == scores.squares.tolist() == [0.0] * 4
    found = backends.returns(x, mask, 1.0)
    assert found.rows.number.tolist() == [3, 3, 0, 0]
    assert found.rows.extent.tolist() == [19, 3, 0, 0]
    assert found.rows.pivot.tolist() == [10.0, 4.0, 0.0, 0.0]
    assert found.rows.total.tolist() == [19.0, 5.0, 0.0, 0.0]  # 22, 17, 10 and 7, 6, 4
    assert found.rows.squares.tolist() == [193.0, 13.0, 0.0, 0.0]


def test_rows_whose_end_is_not_known():
    """As torch's kernels leave it: the mask is read, and an excluded response is 0 as ever."""
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    x = torch.tensor([[1.0, NAN, 3.0, NAN], [5.0, 6.0, NAN, NAN], [INF, 1.0, 1.0, 1.0]])
    rows = replace(backends.scores(x, mask), extent=None)
    pivot, shift, scale = (torch.tensor(number, dtype=torch.float64) for number in (1.0, 2.0, 0.5))
    wanted = [[-1.0, 0.0, 0.0, 0.0], [1.0, 1.5, 0.0, 0.0], [0.0] * 4]
    assert backends.standardise(x, mask, rows, pivot, shift, scale).tolist() == wanted
    found = backends.spread(torch.tensor([2.0, 3.0, 4.0]), mask, rows)
    assert found.tolist() == [[2.0, 0.0, 2.0, 0.0], [3.0, 3.0, 0.0, 0.0], [0.0] * 4]


def test_more_rows_than_the_pool_reads_at_once():
    """Twenty rows in blocks of eight, those of the first without a token: 8 to 19 have the mean 13.5 and the squares 143."""
    x, mask = torch.arange(20.0)[:, None], (torch.arange(20) >= 8)[:, None]
    x[:8] = NAN
    pivot, shift, scale = backends.pooled(backends.moments(x, mask), False, 1.0)
    assert pivot.item() == 8.0
    assert (pivot + shift).item() == 13.5
    assert scale.item() == pytest.approx((143 / 11) ** -0.5, rel=1e-15)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("place", ["reward", "value", "last"])
@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 1.0), (0.9, 0.5), (0.0, 0.0)])
def test_a_number_that_is_not_finite_excludes_its_row_wherever_it_stands(bad, place, gamma, decay):
    """In the first token, the last, and both sides of a block's end; the other rows are as without it."""
    mask = torch.ones(6, 20, dtype=torch.bool)
    mask[:, 5] = False
    rewards, values, last = torch.ones(6, 20), torch.full((6, 20), 0.5), torch.zeros(6)
    clean = backends.gae(rewards, values, mask, last, gamma, decay)
    if place == "last":
        last[:5] = bad
    for row, token in enumerate((0, 7, 8, 12, 19)):
        {"reward": rewards, "value": values}.get(place, torch.zeros(6, 20))[row, token] = bad
    found = backends.gae(rewards, values, mask, last, gamma, decay)
    assert found.rows.number.tolist() == [0] * 5 + [19]
    assert found.rows.written.all()
    for field in ("pivot", "total", "squares", "extent"):
        assert (getattr(found.rows, field)[:5] == 0).all()
    assert (found.advantages[:5] == 0).all()
    assert torch.equal(found.returns[:5], torch.where(mask & values.isfinite(), values, 0)[:5])
    assert torch.equal(found.advantages[5], clean.advantages[5])
