"""What holds for every registered policy and value loss, whatever the batch and its options."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rl_estimators
from fuzz import cases, options
from fuzz.recipes import GARBAGE, Builder, copy, recipes, unchanged
from rl_estimators.backends import use_backend
from rl_estimators.registry import POLICY_LOSSES, VALUE_LOSSES

pytest.importorskip("numba")
LOG_RATIOS = (0.0, 1e-6, 0.3, 5.0, 25.0, 1e4)  # nats; beyond 20 they are clamped
POLICY, VALUE = cases.POLICY_LOSSES, cases.VALUE_LOSSES


def inputs_of(name, recipe, spread):
    """What the loss asks for; ``spread`` is the log-ratios' size."""
    make = Builder(recipe)
    shape = make.mask.shape
    if name in VALUE:
        inputs = {field: make.tensor(make.numbers(shape)) for field in ("vpreds", "values", "returns")}
    else:
        likely, change = -3 * abs(make.random.normal(size=shape)), spread * make.random.normal(size=shape)
        inputs = {
            "old_log_prob": make.tensor(likely - np.maximum(change, 0)),
            "log_prob": make.tensor(likely + np.minimum(change, 0)),
        }
        inputs["advantages"] = make.tensor(make.numbers(shape))
        if recipe.seed % 2:
            inputs["rollout_is_weights"] = make.tensor(make.random.choice([0.0, 0.5, 1.0, 10.0], shape))
    return {**inputs, "response_mask": make.response_mask()}, torch.from_numpy(make.mask)


def _spec(name):
    return (POLICY_LOSSES if name in POLICY else VALUE_LOSSES).spec(name)


def run(name, inputs, given_options, backend):
    """The loss, the gradient by what it trains, and the metrics."""
    trained = "log_prob" if name in POLICY else "vpreds"
    leaf = inputs[trained].detach().requires_grad_()
    chance = {"generator": torch.Generator().manual_seed(3)} if name == "clip_cov" else {}
    kind = rl_estimators.policy_loss if name in POLICY else rl_estimators.value_loss
    with use_backend(backend):
        loss, metrics = kind(name, **{**inputs, trained: leaf}, **given_options, **chance)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return {"loss": loss.detach(), "gradient": gradient, **metrics}


def check(name, recipe, spread, garbage, given_options):
    inputs, mask = inputs_of(name, recipe, spread)
    spoiled, _ = inputs_of(name, replace(recipe, garbage=garbage), spread)
    before = {key: copy(x) for key, x in inputs.items()}
    found = run(name, inputs, given_options, "torch")
    for key, x in inputs.items():
        assert unchanged(before[key], x), f"{key} has been changed"
    for label, x in found.items():
        assert x.isfinite().all(), f"{label} is not finite"
    assert (found["gradient"][~mask] == 0).all(), "the gradient is not 0 at masked positions"
    again = run(name, spoiled, given_options, "torch")
    for label, x in found.items():
        assert torch.equal(again[label], x), f"{label}: masked positions are read"
    other = run(name, inputs, given_options, "numba")
    for label, x in found.items():
        torch.testing.assert_close(other[label], x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


@pytest.mark.parametrize("name", [*POLICY, *VALUE])
@cases.SETTINGS
@given(recipe=recipes, spread=st.sampled_from(LOG_RATIOS), garbage=st.sampled_from(GARBAGE), data=st.data())
def test_loss(name, recipe, spread, garbage, data):
    check(name, recipe, spread, garbage, data.draw(options.for_loss(name)))
    cases.tried["policy losses" if name in POLICY else "value losses"] += 1


@pytest.mark.parametrize("name", [*POLICY, *VALUE])
def test_every_option_is_drawn(name):
    known = options.LOSSES.get(name, {}).keys() | options.ELSEWHERE
    assert _spec(name).options.keys() <= known, "give its range in fuzz/options.py"
