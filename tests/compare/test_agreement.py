"""Agreement of two estimators and where the signal is, against numpy, written out."""

import math

import numpy as np
import pytest
import torch

from rl_estimators.compare.agreement import (
    per_response,
    rank_matrix,
    sign_disagreement,
    signal,
)

NAN = math.nan


def spearman(a, b):
    """Pearson's correlation of midranks, each counted by comparing all pairs."""

    def midranks(x):
        return np.array([(x < one).sum() + ((x == one).sum() - 1) / 2 for one in x])

    return np.corrcoef(midranks(np.asarray(a)), midranks(np.asarray(b)))[0, 1]


def agreement(a, b):
    return rank_matrix([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])[0, 1]


class TestPerResponse:
    def test_the_mean_over_valid_tokens(self):
        """(1 + 4) / 2; -3; no valid token; the masked NaN is not read."""
        advantages = torch.tensor([[1.0, NAN, 4.0], [-3.0, 7.0, 7.0], [9.0, 9.0, 9.0]])
        mask = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
        assert per_response(advantages, mask).tolist() == [2.5, -3.0, 0.0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_equal_advantages_stay_equal_whatever_the_length(self, dtype):
        """Ties would otherwise be broken by rounding: the mean of seven 0.1 is not that of three."""
        mask = torch.arange(50) < torch.arange(1, 51)[:, None]
        found = per_response(torch.full((50, 50), 0.1, dtype=dtype), mask)
        assert found.unique().tolist() == [float(torch.tensor(0.1, dtype=dtype))]

    def test_no_tokens_at_all(self):
        assert per_response(torch.zeros(2, 0), torch.zeros(2, 0)).tolist() == [0.0, 0.0]


class TestRankAgreement:
    def test_by_hand(self):
        """Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15) = 0.8."""
        assert agreement([1.0, 2, 3, 4], [10.0, 30, 20, 40]) == pytest.approx(0.8)

    def test_monotone_is_one_and_reversed_is_minus_one(self):
        a = torch.tensor([0.1, 5.0, -2.0])
        assert agreement(a, a.exp()) == pytest.approx(1)
        assert agreement(a, -a) == pytest.approx(-1)

    def test_ties_share_their_rank(self):
        generator = np.random.default_rng(0)
        for _ in range(20):
            a, b = generator.integers(0, 4, (2, 30)).astype(float)
            assert agreement(a, b) == pytest.approx(spearman(a, b))

    def test_numbers_that_differ_by_rounding_are_ties(self):
        a = np.array([0.3, 0.1 + 0.2, -1.0, 2.0])
        assert a[0] != a[1]
        assert agreement(a, [1.0, 1, 0, 2]) == pytest.approx(1)

    def test_numbers_far_below_the_largest_are_no_ties(self):
        assert agreement([1e-9, 2e-9, 3e-9, 1e9], [1.0, 3, 2, 4]) == pytest.approx(0.8)

    def test_no_order_no_number(self):
        assert math.isnan(agreement([1.0, 1.0], [1.0, 2.0]))
        assert math.isnan(agreement([], []))
        assert math.isnan(agreement([1.0], [1.0]))

    def test_every_two(self):
        columns = [*np.random.default_rng(1).integers(0, 3, (4, 20)).astype(float), np.zeros(20)]
        found = rank_matrix(columns)
        for i, j in np.ndindex(4, 4):
            np.testing.assert_allclose(found[i, j], spearman(columns[i], columns[j]))
        assert np.isnan(found[4]).all()
        assert np.isnan(found[:, 4]).all()


class TestSignDisagreement:
    def test_opposite_signs_of_all_responses(self):
        """Of five, the first and the last; 0 is no side."""
        assert sign_disagreement([1.0, 1, 0, -1, -1e-30], [-2.0, 1, -1, 0, 1e-30]) == 0.4

    def test_what_is_not_finite_is_left_out(self):
        """Of the two that are left, one."""
        assert sign_disagreement([1.0, NAN, 3, 2], [1.0, 0, -3, math.inf]) == 0.5

    def test_no_responses(self):
        assert math.isnan(sign_disagreement([], []))


class TestSignal:
    def test_by_hand(self):
        """Prompt x has 1 + 2 + 1, y 4, z 0: of 8 in all."""
        advantages = torch.tensor([[1.0, -2.0], [-4.0, 9.0], [-1.0, 0.0], [0.0, 0.0]])
        mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
        found = signal(advantages, mask, ["x", "y", "x", "z"])
        assert found.groups == ["x", "y", "z"]
        assert found.shares.tolist() == [0.5, 0.5, 0]
        assert found.carrying == pytest.approx(2 / 3)
        assert found.largest == 0.5

    @pytest.mark.parametrize("index", [torch.tensor([7, 8]), np.array(["a", "b"]), ["a", "b"]])
    def test_nothing_but_zeros(self, index):
        found = signal(torch.zeros(2, 3), torch.ones(2, 3), index)
        assert (found.shares.tolist(), found.carrying, found.largest) == ([0, 0], 0, 0)

    def test_no_responses(self):
        found = signal(torch.zeros(0, 3), torch.zeros(0, 3), [])
        assert (found.groups, found.largest, math.isnan(found.carrying)) == ([], 0, True)
