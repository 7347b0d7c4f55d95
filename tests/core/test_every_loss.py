"""What every registered loss keeps, ours of today and whichever comes next: the list is the registry's."""

import inspect
import math

import numpy as np
import pytest
import torch
from reference import cases

import rl_estimators
from rl_estimators.aggregation import MODES

POLICY, VALUE = rl_estimators.list_policy_loss(), rl_estimators.list_value_loss()
INPUTS = {
    **dict.fromkeys(POLICY, ("old_log_prob", "log_prob", "advantages", "response_mask")),
    **dict.fromkeys(VALUE, ("vpreds", "values", "returns", "response_mask")),
}
TRAINED = {**dict.fromkeys(POLICY, "log_prob"), **dict.fromkeys(VALUE, "vpreds")}
# They choose tokens among those of the batch at hand, and say so; see test_policy_losses.py for what they do instead.
PER_BATCH = {"clip_cov", "kl_cov"}
DUAL = {"ppo_clip": {"clip_ratio_c": 3.0}}  # a branch that is off by default

each = pytest.mark.parametrize("name", INPUTS)
each_mode = pytest.mark.parametrize("mode", MODES)


def run(name, inputs, **options):
    """Loss, gradient by what it trains, metrics."""
    leaf = inputs[TRAINED[name]].clone().requires_grad_()
    kind = rl_estimators.policy_loss if name in POLICY else rl_estimators.value_loss
    loss, metrics = kind(name, **{**inputs, TRAINED[name]: leaf}, **DUAL.get(name, {}), **options)
    loss.backward()
    return loss.detach(), leaf.grad, metrics


def batch(name, mask=cases.HOLES, fill=0.0):
    case = cases.make_loss("every loss", mask, fill=fill)
    inputs = {field: torch.tensor(getattr(case, field)) for field in INPUTS[name]}
    return inputs


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-13)


@each
@each_mode
def test_nothing_is_read_back_from_the_device(name, mode):
    """Tensors on "meta" have no values: an .item(), a bool() or an index by mask would raise."""
    inputs = {field: x.to("meta") for field, x in batch(name).items()}
    loss, slope, metrics = run(name, inputs, loss_agg_mode=mode)
    assert {x.device.type for x in (loss, slope, *metrics.values())} == {"meta"}


@each
def test_metrics_are_detached_scalars(name):
    loss, _, metrics = run(name, batch(name))
    assert loss.shape == ()
    assert metrics
    for label, metric in metrics.items():
        assert isinstance(metric, torch.Tensor), label
        assert (metric.shape, metric.requires_grad) == ((), False), label


@each
@each_mode
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 5)])
def test_an_empty_micro_batch_is_zero(name, mode, shape):
    """No rows, no columns, or nothing valid, with NaN everywhere: loss, gradient and metrics are 0."""
    inputs = {field: torch.full(shape, math.nan) for field in INPUTS[name]}
    inputs["response_mask"] = torch.zeros(shape)
    for info in (
        {},
        {"batch_num_tokens": 9, "global_batch_size": 3},
        {"batch_num_tokens": 0, "global_batch_size": 0},
    ):
        loss, slope, metrics = run(name, inputs, loss_agg_mode=mode, global_batch_info=info)
        assert loss == 0
        assert torch.equal(slope, torch.zeros(shape))
        assert all(metric == 0 for metric in metrics.values()), metrics


@each
@each_mode
def test_empty_rows_and_garbage_change_nothing(name, mode):
    """Two rows of padding, and NaN at every masked position; a share of one token draws one token either way."""
    empty = np.zeros((2, 7), dtype=bool)
    whole = batch(name, np.vstack([cases.HOLES, empty]), fill=math.nan)
    plain = {field: x[: len(cases.HOLES)].nan_to_num() for field, x in whole.items()}
    if name == "clip_cov":  # the draw: give both the same
        whole["generator"], plain["generator"] = (torch.Generator().manual_seed(0) for _ in range(2))
    with_rows, without = run(name, whole, loss_agg_mode=mode), run(name, plain, loss_agg_mode=mode)
    close(with_rows[0], without[0])
    close(with_rows[1][: len(cases.HOLES)], without[1])
    assert (with_rows[1][len(cases.HOLES) :] == 0).all()
    for label, metric in with_rows[2].items():
        close(metric, without[2][label])


@each
@each_mode
@pytest.mark.parametrize("dp_size", [1, 2])
def test_micro_batches_add_up(name, mode, dp_size):
    """Parts of 1, 3, 2 rows and one of padding alone: losses and gradients sum up to the whole batch's."""
    inputs = batch(name, np.vstack([cases.HOLES, np.zeros((1, 7), bool)]), fill=math.nan)
    whole, whole_slope, _ = run(name, inputs, loss_agg_mode=mode)
    info = {"batch_num_tokens": int(cases.HOLES.sum()), "global_batch_size": 6, "dp_size": dp_size}
    parts = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 7)):
        part = {field: x[rows] for field, x in inputs.items()}
        parts.append(run(name, part, loss_agg_mode=mode, global_batch_info=info))
    total, slopes = sum(part[0] for part in parts) / dp_size, torch.cat([part[1] for part in parts]) / dp_size
    if name in PER_BATCH:
        assert not torch.allclose(slopes, whole_slope, rtol=1e-12, atol=1e-13), "no longer an exception"
        return
    close(total, whole)
    close(slopes, whole_slope)


@each
def test_by_name_is_the_function_itself(name):
    """The same average, too: six rows of unequal length, where the modes differ."""
    function = (rl_estimators.get_policy_loss if name in POLICY else rl_estimators.get_value_loss)(name)
    inputs = batch(name)
    asked = {field: x for field, x in inputs.items() if field in inspect.signature(function).parameters}
    torch.manual_seed(0)  # clip_cov's draw
    by_name = run(name, inputs)[0]
    torch.manual_seed(0)
    assert torch.equal(by_name, function(**asked, **DUAL.get(name, {}))[0])
