"""Huber's value loss by hand."""

import math

import pytest
import torch

import rl_estimators
from rl_estimators.aggregation import MODES
from rl_estimators.errors import InputError

# Errors e = V - R of 0.5, -1, 3, -2 with delta 1, and one at a masked position:
#   |e| <= 1: e^2 / 2 = 0.125, 0.5;  slopes e = 0.5, -1
#   |e| > 1:  |e| - 1/2 = 2.5, 1.5;  slopes +1, -1
VPREDS = [[0.5, 1.0], [4.0, -2.0], [7.0, 0.0]]
RETURNS = [[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]
MASK = [[1, 1], [1, 1], [0, 0]]
LOSSES = [[0.125, 0.5], [2.5, 1.5]]
SLOPES = [[0.5, -1.0], [1.0, -1.0], [0.0, 0.0]]


def run(vpreds=VPREDS, returns=RETURNS, mask=MASK, dtype=torch.float64, **options):
    """Loss, slope in the predictions, and metrics."""
    vpreds = torch.tensor(vpreds, dtype=dtype, requires_grad=True)
    returns = torch.tensor(returns, dtype=dtype)
    loss, metrics = rl_estimators.value_loss(
        "huber",
        vpreds=vpreds,
        values=torch.zeros_like(returns),
        returns=returns,
        response_mask=torch.tensor(mask),
        **options,
    )
    loss.backward()
    return loss.item(), vpreds.grad, metrics


def test_by_hand():
    loss, slope, metrics = run(loss_agg_mode="token-sum")
    assert loss == 0.125 + 0.5 + 2.5 + 1.5
    assert slope.tolist() == SLOPES
    assert metrics["vf_linear_frac"].item() == pytest.approx(2 / 4)
    assert metrics["vpred_mean"].item() == pytest.approx((0.5 + 1 + 4 - 2) / 4)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("token-mean", (0.625 + 4) / 4),
        ("token-sum", 0.625 + 4),
        ("seq-mean-token-sum", (0.625 + 4) / 2),  # the third row has no valid token
        ("seq-mean-token-sum-norm", (0.625 + 4) / 2 / 2),
        ("seq-mean-token-mean", (0.625 / 2 + 4 / 2) / 2),
    ],
)
def test_the_five_aggregations(mode, wanted):
    assert run(loss_agg_mode=mode)[0] == pytest.approx(wanted, rel=1e-12)


def test_delta_moves_the_kink():
    """Delta 2: e = 3 gives 2 (3 - 1) = 4, slope 2; e = -2 is just inside, 2, slope -2. Delta 1/2: 3 gives 1.375."""
    loss, slope, _ = run([[3.0, -2.0]], [[0.0, 0.0]], [[1, 1]], delta=2.0, loss_agg_mode="token-sum")
    assert (loss, slope.tolist()) == (4.0 + 2.0, [[2.0, -2.0]])
    loss, slope, _ = run([[3.0]], [[0.0]], [[1]], delta=0.5)
    assert (loss, slope.tolist()) == (0.5 * (3 - 0.25), [[0.5]])


def test_delta_zero_teaches_nothing():
    loss, slope, _ = run(delta=0.0)
    assert (loss, slope.abs().sum().item()) == (0.0, 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_wide_enough_it_is_mse(mode):
    tensors = {"vpreds": torch.tensor(VPREDS), "returns": torch.tensor(RETURNS)}
    inputs = {**tensors, "values": tensors["returns"], "response_mask": torch.tensor(MASK)}
    huber, _ = rl_estimators.value_loss("huber", **inputs, loss_agg_mode=mode, delta=3.0)
    assert huber == rl_estimators.value_loss("mse", **inputs, loss_agg_mode=mode)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_at_masked_positions_does_not_matter(mode, garbage):
    spoiled = ([*VPREDS[:2], [garbage, 0.0]], [*RETURNS[:2], [0.0, garbage]])
    loss, slope, metrics = run(*spoiled, loss_agg_mode=mode)
    clean_loss, clean_slope, clean_metrics = run(loss_agg_mode=mode)
    assert loss == clean_loss
    assert torch.equal(slope, clean_slope)
    assert metrics == clean_metrics


def test_no_valid_token():
    loss, slope, metrics = run(mask=[[0, 0]] * 3)
    assert (loss, slope.abs().sum().item(), metrics["vf_linear_frac"].item()) == (0.0, 0.0, 0.0)


def test_an_error_whose_square_overflows_keeps_its_slope():
    """In float32 (1e30)^2 is infinite; the loss is 1e30 and the slope 1, and the neighbour keeps its own."""
    loss, slope, _ = run(
        [[1e30, 0.5]], [[0.0, 0.0]], [[1, 1]], dtype=torch.float32, loss_agg_mode="token-sum"
    )
    assert math.isfinite(loss)
    assert slope.tolist() == [[1.0, 0.5]]


def test_micro_batches_add_up():
    """With the whole batch's 4 tokens and 2 responses as denominators, the rows' losses sum to the batch's."""
    whole = {"batch_num_tokens": 4, "global_batch_size": 2, "loss_scale_factor": 2}
    for mode in MODES:
        rows = [
            run([v], [r], [m], loss_agg_mode=mode, global_batch_info=whole)[0]
            for v, r, m in zip(VPREDS, RETURNS, MASK, strict=True)
        ]
        assert sum(rows) == pytest.approx(run(loss_agg_mode=mode)[0], rel=1e-12)


def test_targets_get_no_gradient():
    returns = torch.zeros(1, 1, requires_grad=True)
    vpreds = torch.ones(1, 1, requires_grad=True)
    inputs = {"vpreds": vpreds, "values": vpreds.detach(), "returns": returns}
    rl_estimators.value_loss("huber", **inputs, response_mask=torch.ones(1, 1))[0].backward()
    assert returns.grad is None


def test_negative_delta():
    with pytest.raises(InputError, match=r"huber: delta is -1, expected a number in \[0, inf\]"):
        run(delta=-1)
