"""The package against tests/reference, which was written from the definitions alone.

Tolerances are forward error bounds in working precision, computed per case in reference/tolerance.py.
"""

from itertools import cycle, product

import numpy as np
import pytest
import torch
from reference import cases, losses, tolerance
from reference import definitions as ref
from reference.tensors import FLOATS, MASKS, arrays_of, as_tensor, epsilon_of, tensors_of, working_dtype

import rl_estimators

VARIANTS = {
    "gae": [
        {},
        {"whiten": False},
        {"gamma": 1.0, "lam": 0.95, "whiten": False},
        {"gamma": 0.99, "lam": 0.95, "whiten": False},
        {"gamma": 0.99, "lam": 0.95, "whiten": True},
        {"gamma": 0.9, "lam": 0.0, "whiten": False},
        {"gamma": 0.0, "lam": 0.5, "whiten": False},
    ],
    "grpo": [
        {},
        {"norm_by_std": False},
        {"singleton": "raw"},
        {"singleton": "raw", "epsilon": 0.5},
        {"singleton": "raw", "norm_by_std": False},
    ],
    "reinforce_pp": [{}, {"gamma": 0.99}, {"gamma": 0.5}, {"gamma": 0.0}],
    "remax": [{}, {"gamma": 0.9}],
}
LONG_VARIANTS = {
    "gae": [
        {"gamma": gamma, "lam": lam, "whiten": whiten}
        for (gamma, lam), whiten in product([(1.0, 1.0), (1.0, 0.95), (0.99, 0.95)], [False, True])
    ],
    "grpo": [{}],
    "reinforce_pp": [{"gamma": 1.0}, {"gamma": 0.99}],
    "remax": [{"gamma": 1.0}, {"gamma": 0.99}],
}


def written(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "defaults"


def combinations(variants, batches):
    return [
        pytest.param(name, options, case, id=f"{name}-{written(options)}-{case.name}")
        for name in variants
        for options, case in product(variants[name], batches)
    ]


def expected(name, options, case, dtype):
    inputs = arrays_of(case, ref.INPUTS[name], dtype)
    bounds = tolerance.BOUNDS[name](inputs, options, epsilon_of(dtype))
    return ref.ESTIMATORS[name](**inputs, **options), bounds


def assert_within(actual, wanted, bound, label):
    excess = np.abs(actual.double().numpy() - wanted) - bound
    assert actual.isfinite().all(), f"{label}: not finite\n{actual}"
    assert (excess <= 0).all(), f"{label}: off by up to {excess.max()} over {bound}\n{actual}\n{wanted}"


def check(name, options, case, dtype, mask_dtype):
    wanted, bounds = expected(name, options, case, dtype)
    inputs = tensors_of(case, ref.INPUTS[name], dtype, mask_dtype)
    estimate = rl_estimators.estimate(name, **inputs, **options)
    for field, bound in zip(("advantages", "returns"), bounds, strict=True):
        actual = getattr(estimate, field)
        assert actual.dtype == working_dtype(dtype), field
        assert actual.shape == case.response_mask.shape, field
        assert_within(actual, getattr(wanted, field), bound, f"{field}, {dtype}, {mask_dtype}")
        assert (actual.numpy()[~case.response_mask] == 0).all(), f"{field} not 0 at masked positions"


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize(("name", "options", "case"), combinations(VARIANTS, cases.SHORT))
def test_estimator(name, options, case, dtype):
    for mask_dtype in MASKS.values():
        check(name, options, case, dtype, mask_dtype)


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize(("name", "options", "case"), combinations(LONG_VARIANTS, cases.LONG_CASES))
def test_long_response(name, options, case, dtype):
    check(name, options, case, dtype, torch.bool)


EXACT_ZEROS = {
    # every response the same score: no group or batch statistic tells them apart
    "grpo": ("tie_0.7", "tie_1000.1", "all_zero", "singletons", "one_valid_token", "one_row"),
    "reinforce_pp": ("tie_0.7", "tie_1000.1", "all_zero", "one_valid_token", "one_by_one"),
    "gae": ("all_zero", "one_valid_token", "one_by_one", "no_valid_token"),
}


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, names in EXACT_ZEROS.items() for case in names]
)
def test_exactly_zero(name, case, dtype):
    """No tolerance: the definition says 0, and rounding is no excuse."""
    inputs = tensors_of(cases.BY_NAME[case], ref.INPUTS[name], dtype)
    assert (rl_estimators.estimate(name, **inputs).advantages == 0).all()


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_ties_inside_a_mixed_batch_are_exactly_zero(norm_by_std):
    case = cases.BY_NAME["tie_in_one_group"]  # rows 0-2 tie at 0.7, rows 3-6 do not
    inputs = tensors_of(case, ref.INPUTS["grpo"], torch.float32)
    advantages = rl_estimators.estimate("grpo", **inputs, norm_by_std=norm_by_std).advantages
    assert (advantages[:3] == 0).all()
    assert (advantages[3:][torch.tensor(case.response_mask[3:])] != 0).all()


def as_list(index):
    return list(index)


def as_object_array(index):
    return cases.uids(*index)


def as_long_tensor(index):
    return torch.tensor([int(uid) for uid in index])


INT_CASES = [case for case in cases.SHORT if case.name.endswith("int_uids") and case.name != "numpy_int_uids"]


@pytest.mark.parametrize("convert", [as_list, as_object_array, as_long_tensor])
@pytest.mark.parametrize("case", INT_CASES, ids=lambda case: case.name)
def test_kinds_of_integer_index(case, convert):
    wanted, (bound, _) = expected("grpo", {}, case, torch.float64)
    inputs = tensors_of(case, ref.INPUTS["grpo"], torch.float64)
    actual = rl_estimators.estimate("grpo", **{**inputs, "index": convert(case.index)})
    assert_within(actual.advantages, wanted.advantages, bound, convert.__name__)


@pytest.mark.parametrize("convert", [as_list, as_object_array])
@pytest.mark.parametrize("name", ["leading_zero_uids", "int_and_str_uids", "outcome_01"])
def test_kinds_of_str_index(name, convert):
    case = cases.BY_NAME[name]
    wanted, (bound, _) = expected("grpo", {}, case, torch.float64)
    inputs = tensors_of(case, ref.INPUTS["grpo"], torch.float64)
    actual = rl_estimators.estimate("grpo", **{**inputs, "index": convert(case.index)})
    assert_within(actual.advantages, wanted.advantages, bound, convert.__name__)


LOSS_VARIANTS = {
    "ppo_clip": [
        {},
        {"clip_ratio_low": 0.1, "clip_ratio_high": 0.28},
        {"clip_ratio_c": 3.0},
        {"clip_ratio_c": 1.5, "clip_ratio_high": 0.4},
    ],
    "mse": [{}],
    "clipped": [{}, {"cliprange_value": 0.1}, {"cliprange_value": 5.0}],
}


def call_loss(name, **kwargs):
    kind = rl_estimators.policy_loss if name in losses.POLICY_LOSSES else rl_estimators.value_loss
    return kind(name, **kwargs)


def loss_inputs(name, case, dtype, mask_dtype=torch.bool):
    return tensors_of(case, (*losses.INPUTS[name], "response_mask"), dtype, mask_dtype)


def value_and_slope(name, inputs, **kwargs):
    """The loss, its metrics, and its gradient by what it trains."""
    inputs = dict(inputs)
    leaf = inputs[losses.TRAINED[name]].clone().requires_grad_()
    inputs[losses.TRAINED[name]] = leaf
    loss, metrics = call_loss(name, **inputs, **kwargs)
    loss.backward()
    return loss.detach(), metrics, leaf.grad


def loss_bounds(name, arrays, per_token, share, dtype):
    """Bounds of the value, and element by element of the gradient.

    An element costs a handful of roundings, 16 eps; exp() turns an error of the log-ratio into a relative one, and the
    log-ratio carries eps (|new| + |old|). A squared error carries eps |v| |v - R| where v and R nearly cancel.
    The sum over n elements adds 5 sqrt(n) eps (see reference/tolerance.py). A bfloat16 leaf gets its gradient rounded
    to bfloat16 (half an epsilon of it, one here), and float16 may round it to a subnormal (absolute 6e-8).
    """
    eps, at = epsilon_of(dtype), arrays["response_mask"]
    handled = sum(np.abs(np.where(at, arrays[field], 0.0)) for field in losses.INPUTS[name])
    if name == "ppo_clip":
        element, slope = np.abs(per_token.loss) * (16 + handled), np.abs(per_token.slope) * (16 + handled)
    else:
        element, slope = np.abs(per_token.loss) + 16 * handled**2, 16 * handled
    value = eps * np.sum(share * element) * (1 + 5 * np.sqrt(max(at.sum(), 1)))
    rounding = torch.finfo(dtype).eps * np.abs(share * per_token.slope) + (
        6e-8 if dtype == torch.float16 else 0
    )
    return value, eps * share * slope + rounding


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize(("name", "options", "case"), combinations(LOSS_VARIANTS, cases.LOSS_CASES))
def test_loss_and_gradient(name, options, case, dtype):
    arrays = arrays_of(case, (*losses.INPUTS[name], "response_mask"), dtype)
    per_token = losses.LOSSES[name](**arrays, **options)
    # the mask's dtype takes turns over the modes; that they agree to the last bit is in test_properties.py
    for mode, mask_dtype in zip(losses.AGGREGATIONS, cycle(MASKS.values()), strict=False):
        share = losses.weights(case.response_mask, mode)
        value_bound, slope_bound = loss_bounds(name, arrays, per_token, share, dtype)
        inputs = loss_inputs(name, case, dtype, mask_dtype)
        loss, metrics, slope = value_and_slope(name, inputs, loss_agg_mode=mode, **options)
        assert loss.shape == ()
        assert loss.dtype == working_dtype(dtype)
        wanted = losses.aggregate(per_token.loss, case.response_mask, mode)
        assert_within(loss, wanted, value_bound, f"{mode}, {mask_dtype}")
        assert_within(slope, share * per_token.slope, slope_bound, f"gradient, {mode}, {mask_dtype}")
        assert (slope.double().numpy()[~case.response_mask] == 0).all()
        assert all(np.isfinite(float(metric)) for metric in metrics.values()), metrics


@pytest.mark.parametrize(("name", "options", "case"), combinations(LOSS_VARIANTS, cases.LOSS_CASES))
def test_token_mean_is_the_default(name, options, case):
    inputs = loss_inputs(name, case, torch.float64)
    assert torch.equal(
        call_loss(name, **inputs, **options)[0],
        call_loss(name, **inputs, **options, loss_agg_mode="token-mean")[0],
    )


@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
@pytest.mark.parametrize("name", losses.LOSSES)
def test_reference_gradient_is_the_slope_of_the_reference_value(name, mode):
    """The reference checked against itself: central differences, step 1e-6, error about 1e-10 (no kink this near)."""
    case = cases.make_loss("slope_of_reference", cases.HOLES)
    arrays = arrays_of(case, (*losses.INPUTS[name], "response_mask"), torch.float64)
    trained = losses.TRAINED[name]

    def value(b, t, step):
        moved = arrays[trained].copy()
        moved[b, t] += step
        return losses.aggregate(
            losses.LOSSES[name](**{**arrays, trained: moved}).loss, case.response_mask, mode
        )

    slope = losses.weights(case.response_mask, mode) * losses.LOSSES[name](**arrays).slope
    for b, t in np.ndindex(slope.shape):
        assert (value(b, t, 1e-6) - value(b, t, -1e-6)) / 2e-6 == pytest.approx(slope[b, t], abs=1e-8)


INFOS = [
    {"batch_num_tokens": 37, "global_batch_size": 11},
    {"dp_size": 4, "batch_num_tokens": 37, "global_batch_size": 11, "loss_scale_factor": 13},
    {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, "loss_scale_factor": None},
    {"loss_scale_factor": 100},
    {},
]


@pytest.mark.parametrize("case", ["ragged_prefix", "all_masked_rows", "nan_at_masked", "no_valid_token_nan"])
@pytest.mark.parametrize("info", INFOS, ids=written)
@pytest.mark.parametrize("name", losses.LOSSES)
def test_global_batch_info(name, info, case):
    case = next(known for known in cases.LOSS_CASES if known.name == case)
    arrays = arrays_of(case, (*losses.INPUTS[name], "response_mask"), torch.float64)
    per_token = losses.LOSSES[name](**arrays)
    for mode in losses.AGGREGATIONS:
        inputs = loss_inputs(name, case, torch.float64)
        loss, _, slope = value_and_slope(name, inputs, loss_agg_mode=mode, global_batch_info=info)
        share = losses.weights(case.response_mask, mode, info)
        value_bound, slope_bound = loss_bounds(name, arrays, per_token, share, torch.float64)
        wanted = losses.aggregate(per_token.loss, case.response_mask, mode, info)
        assert_within(loss, wanted, value_bound, mode)
        assert_within(slope, share * per_token.slope, slope_bound, f"gradient, {mode}")


# one row; an all-masked row on its own (nothing valid); an uneven rest
MICRO_BATCHES = [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 9)]


@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
@pytest.mark.parametrize("name", losses.LOSSES)
def test_micro_batches_add_up_to_the_whole(name, mode, dp_size):
    """Losses and gradients of the micro-batches add up; with dp_size ranks, their average is what counts."""
    mask = cases.prefix_mask([3, 0, 4, 5, 2, 1, 0, 5, 4], 5)
    inputs = loss_inputs(name, cases.make_loss("micro_batches", mask, fill=np.nan), torch.float64)
    whole, _, whole_slope = value_and_slope(name, inputs, loss_agg_mode=mode)
    info = {
        "dp_size": dp_size,
        "batch_num_tokens": int(mask.sum()),
        "global_batch_size": int(mask.any(axis=1).sum()),
    }
    parts = [
        value_and_slope(
            name,
            {key: x[rows] for key, x in inputs.items()},
            loss_agg_mode=mode,
            global_batch_info=info,
        )
        for rows in MICRO_BATCHES
    ]
    # 27 terms of order 1 in float64
    torch.testing.assert_close(sum(loss for loss, _, _ in parts) / dp_size, whole, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        torch.cat([g for _, _, g in parts]) / dp_size, whole_slope, rtol=1e-13, atol=1e-16
    )


@pytest.mark.parametrize(
    "mode", [mode for mode in losses.AGGREGATIONS if mode != "token-sum"]
)  # a sum has no denominator
@pytest.mark.parametrize("name", losses.LOSSES)
def test_several_ranks_need_global_denominators(name, mode):
    """As verl's agg_loss: with dp_size > 1 a denominator counted on one rank would be wrong."""
    inputs = loss_inputs(name, cases.LOSS_CASES[0], torch.float64)
    with pytest.raises(ValueError, match="dp_size"):
        call_loss(name, **inputs, loss_agg_mode=mode, global_batch_info={"dp_size": 2})


def test_bfloat16_inputs_are_rounded_once():
    """A guard on the harness: the reference sees 0.7 as bfloat16 does."""
    assert as_tensor(np.array([0.7]), torch.bfloat16).double().item() == 0.69921875
