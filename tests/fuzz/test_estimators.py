"""What holds for every registered estimator, whatever the batch and its options."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rl_estimators
from fuzz import cases, options
from fuzz.recipes import GARBAGE, Builder, copy, recipes, unchanged
from rl_estimators.registry import ADV_ESTIMATORS

pytest.importorskip("numba")
# Of what is smaller fp32 holds no square: torch's kernels find no spread, where numba's add up in fp64. The default
# eps of 1e-8 makes both 0.
SQUARES = 1e-18
each = pytest.mark.parametrize("name", cases.ESTIMATORS)


def inputs_of(name, recipe):
    """Everything that the estimator may ask for."""
    make = Builder(recipe)
    asked = set(ADV_ESTIMATORS.spec(name).required + ADV_ESTIMATORS.spec(name).optional)
    shape, rows = make.mask.shape, len(make.mask)
    rewards = make.numbers(shape)
    inputs = {
        "token_level_rewards": make.tensor(abs(rewards) if name == "maxrl" else rewards),
        "response_mask": make.response_mask(),
    }
    if "index" in asked:
        inputs["index"] = make.index()
    for field in sorted(asked & {"values", "old_log_probs", "ref_log_prob"}):
        numbers = make.numbers(shape) if field == "values" else -5 * abs(make.random.normal(size=shape))
        inputs[field] = make.tensor(numbers)
    if "reward_baselines" in asked:
        inputs["reward_baselines"] = make.tensor(make.numbers((rows,)), per="row")
    if "reward_components" in asked:
        inputs["reward_components"] = make.tensor(make.numbers((rows, 3)), per="row")
    if "truncated" in asked and recipe.seed % 2:
        truncated = make.random.random(rows) < 0.5
        after = make.tensor(make.numbers((rows,)), per="row")
        inputs["truncated"] = torch.from_numpy(truncated).to(inputs["response_mask"].dtype)
        inputs["bootstrap_values"] = after.masked_fill(~torch.from_numpy(truncated), recipe.garbage)
    return inputs, torch.from_numpy(make.mask)


def run(name, inputs, given_options, backend):
    return rl_estimators.estimate(name, **inputs, **given_options, backend=backend)


def same(one, other):
    return torch.equal(one.advantages, other.advantages) and torch.equal(one.returns, other.returns)


def rounding(name, inputs, mask, given_options, results):
    r"""How far two correct results may be apart: their rounding errors, times what the estimator makes of such.

    What is computed on the way is known to some eps of the largest number of all inputs, token by token. The estimator
    is asked in fp64 how much its output moves when each number in its inputs moves by as much; the bound is a multiple of
    that, and of the roundings of the output itself. Where a rounding decides, as between scores that are equal or not,
    the answer is much, and nothing is asked of the two.
    """
    wide = {key: x.double() if _is_numbers(key, x) else x for key, x in inputs.items()}
    eps = torch.finfo(results[0].dtype).eps
    operations = 4 + mask.shape[1]
    most = 2 * operations * eps * max(_largest(x) for key, x in wide.items() if _is_numbers(key, x))
    still = run(name, wide, given_options, "torch")
    moved, draw = [0.0, 0.0], torch.Generator().manual_seed(0)
    for _ in range(2):
        other = {key: _moved(x, most, draw) if _is_numbers(key, x) else x for key, x in wide.items()}
        if name == "maxrl":
            other["token_level_rewards"] = other["token_level_rewards"].clamp(min=0)
        after = run(name, other, given_options, "torch")
        moved = [max(m, float((x - y).abs().max())) for m, x, y in zip(moved, still, after, strict=True)]
    smallest = torch.finfo(results[0].dtype).tiny
    return [
        8 * (move + operations * (eps * float(x.abs().max()) + smallest))
        for move, x in zip(moved, results, strict=True)
    ]


def _whitening(given_options):
    return given_options.get("whitening", {})


def _is_numbers(key, x):
    """Whether an input is known to rounding only, unlike masks and names."""
    return key not in ("response_mask", "truncated", "index") and x.is_floating_point()


def _largest(x):
    numbers = x[x.isfinite() & (x.abs() < 1e38)].abs()  # without the garbage
    return float(numbers.max()) if len(numbers) else 0.0


def _moved(x, most, draw):
    return x + most * (2 * torch.rand(x.shape, generator=draw, dtype=x.dtype) - 1)


def sequential(inputs, mask, given_options):
    """Returns, one token after the other from the right in the working precision; of gae, reinforce_pp and remax."""
    floats = {x.dtype for key, x in inputs.items() if _is_numbers(key, x)}
    kind = np.float64 if torch.float64 in floats else np.float32
    gamma = given_options.get("gamma", 1.0)
    decay, gamma = kind(gamma * given_options.get("lam", 1.0)), kind(gamma)
    rewards = inputs["token_level_rewards"].double().numpy().astype(kind)
    values = inputs.get("values", torch.zeros(mask.shape)).double().numpy().astype(kind)
    returns = np.zeros(mask.shape, kind)
    for b, row in enumerate(mask.numpy()):
        later = following = kind(0)
        if "truncated" in inputs and inputs["truncated"][b]:
            following = kind(inputs["bootstrap_values"][b].item())
        for t in np.flatnonzero(row)[::-1]:
            later = rewards[b, t] + gamma * following - values[b, t] + decay * later
            following = values[b, t]
            returns[b, t] = later + values[b, t]
    return torch.from_numpy(returns)


def check(name, recipe, garbage, given_options):
    inputs, mask = inputs_of(name, recipe)
    spoiled, _ = inputs_of(name, replace(recipe, garbage=garbage))
    before = {key: copy(x) for key, x in inputs.items()}
    found = {backend: run(name, inputs, given_options, backend) for backend in ("torch", "numba")}
    for key, x in inputs.items():
        assert unchanged(before[key], x), f"{key} has been changed"
    for backend, result in found.items():
        for output in result:
            assert output.isfinite().all(), f"{backend}: not finite"
            assert (output[~mask] == 0).all(), f"{backend}: not 0 at masked positions"
        assert same(run(name, spoiled, given_options, backend), result), (
            f"{backend}: masked positions are read"
        )
    if recipe.scale < SQUARES and _whitening(given_options).get("eps") == 0:
        return
    bounds = rounding(name, inputs, mask, given_options, found["torch"])
    for label, bound, one, other in zip(("advantages", "returns"), bounds, *found.values(), strict=True):
        gap = float((one - other).abs().max())
        assert gap <= bound, f"{label}: torch and numba are {gap} apart, more than {bound}"
    whole = {"gamma", "lam", "whiten", "whitening", "penalty"}
    if name in ("gae", "reinforce_pp", "remax") and given_options.keys() <= whole:
        wanted = sequential(inputs, mask, given_options)
        assert torch.equal(found["numba"].returns, wanted), (
            "numba's returns are not the recursion's to the bit"
        )


@each
@cases.SETTINGS
@given(recipe=recipes, garbage=st.sampled_from(GARBAGE), data=st.data())
def test_estimator(name, recipe, garbage, data):
    check(name, recipe, garbage, data.draw(options.for_estimator(name)))
    cases.tried["estimators"] += 1


@each
def test_every_option_is_drawn(name):
    known = options.ESTIMATORS.get(name, {}).keys() | options.ELSEWHERE
    assert ADV_ESTIMATORS.spec(name).options.keys() <= known, "give its range in fuzz/options.py"
