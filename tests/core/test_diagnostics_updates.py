"""Sums of parts: micro-batches, mini-batches and processes must not change what they amount to."""

import functools

import pytest
import torch

from rl_estimators.diagnostics import loggable
from rl_estimators.diagnostics.updates import (
    add_sums,
    policy_numbers,
    policy_sums,
    value_numbers,
    value_sums,
)

NAN = float("nan")
PARTS = (slice(0, 1), slice(1, 5), slice(5, 6), slice(6, 9))


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(7) < torch.randint(1, 8, (9, 1), generator=g)
    mask[5] = False  # a part of its own, without tokens
    draw = functools.partial(torch.randn, 9, 7, generator=g)
    columns = {
        name: torch.where(mask, draw(), NAN) for name in ("new", "old", "ref", "vpreds", "values", "returns")
    }
    return {"mask": mask, **columns}


def policy(batch, rows=slice(None)):
    return policy_sums(*(batch[name][rows] for name in ("new", "old", "mask", "ref")))


def value(batch, rows=slice(None)):
    return value_sums(
        *(batch[name][rows] for name in ("values", "returns", "mask", "vpreds")), cliprange_value=0.3
    )


@pytest.mark.parametrize(("sums", "amount"), [(policy, policy_numbers), (value, value_numbers)])
def test_parts_amount_to_the_whole(sums, amount, batch):
    whole = loggable(amount(sums(batch)))
    parts = loggable(amount(functools.reduce(add_sums, [sums(batch, rows) for rows in PARTS], {})))
    assert len(whole) == len(amount(sums(batch)))
    assert parts == {name: pytest.approx(number) for name, number in whole.items()}


@pytest.mark.parametrize(("sums", "amount"), [(policy, policy_numbers), (value, value_numbers)])
def test_a_common_factor_changes_nothing(sums, amount, batch):
    """verl means sums over processes; extremes have no factor."""
    found = sums(batch)
    assert len(loggable(amount(found))) == len(amount(found))
    third = {name: x if name in ("ratio_min", "ratio_max") else x / 3 for name, x in found.items()}
    assert loggable(amount(third)) == {
        name: pytest.approx(number) for name, number in loggable(amount(found)).items()
    }


def test_against_numpy(batch):
    """Each definition again, in numpy and float64."""
    mask = batch["mask"].numpy()
    new, old, ref = (batch[name].double().numpy()[mask] for name in ("new", "old", "ref"))
    log_ratio = new - old
    ratio = 2.718281828459045**log_ratio
    assert loggable(policy_numbers(policy(batch))) == {
        "ratio_mean": pytest.approx(ratio.mean()),
        "ratio_std": pytest.approx(ratio.std()),
        "ratio_min": pytest.approx(ratio.min()),
        "ratio_max": pytest.approx(ratio.max()),
        "effective_sample_size": pytest.approx(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())),
        "policy_kl": pytest.approx((ratio - 1 - log_ratio).mean()),
        "reference_kl": pytest.approx((old - ref).mean()),
    }


def test_a_step_so_small_that_the_divergence_drowns_in_rounding():
    """Log-ratios of +-2^-14: k3 is half their square, 1.9e-9, where fp32 ratios are good to 6e-8."""
    log_ratio = torch.tensor([[1.0, -1.0] * 50]) * 2**-14
    found = policy_numbers(policy_sums(log_ratio, torch.zeros(1, 100), torch.ones(1, 100)))
    assert float(found["policy_kl"]) == pytest.approx(2**-29, rel=1e-3)
    assert float(found["ratio_std"]) == pytest.approx(2**-14, rel=1e-3)


def test_a_ratio_beyond_all_bounds_stays_finite():
    """The log-ratio is clamped to 20, as in the losses."""
    found = loggable(
        policy_numbers(policy_sums(torch.tensor([[90.0]]), torch.tensor([[0.0]]), torch.ones(1, 1)))
    )
    assert found["ratio_max"] == pytest.approx(torch.tensor(20.0).double().exp().item())


def test_values_far_from_zero():
    """1000 +- 1 with errors of 1/2: fp32 squares would leave nothing of the variances."""
    returns = 1000 + torch.tensor([[1.0, -1.0] * 50])
    vpreds = returns + torch.tensor([[0.5, 0.5, -0.5, -0.5] * 25])
    found = value_numbers(value_sums(vpreds, returns, torch.ones(1, 100), vpreds))
    assert found["explained_variance_before"] == found["explained_variance_after"]
    assert float(found["explained_variance_after"]) == pytest.approx(0.75, rel=1e-6)


def test_a_loss_without_a_clip_has_no_share(batch):
    columns = (batch[name] for name in ("values", "returns", "mask", "vpreds"))
    assert "value_clip_share" not in value_numbers(value_sums(*columns))
