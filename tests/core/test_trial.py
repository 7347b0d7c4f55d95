"""Options are tried out on one empty token."""

import pytest
import torch

from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES
from rl_estimators.trial import try_out

SPECS = [one.spec(name) for one in (ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES) for name in one.names()]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.is_ours], ids=lambda spec: spec.name)
def test_every_function_s_defaults_pass_and_draw_no_random_numbers(spec):
    before = torch.random.get_rng_state()
    try_out(spec, [*spec.required, *spec.optional], {})
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_option_out_of_range_is_named():
    spec = POLICY_LOSSES.spec("clip_cov")
    with pytest.raises(InputError, match="clip_cov: clip_ratio_low is -1"):
        try_out(spec, spec.required, {"clip_ratio_low": -1})


def test_a_weight_for_each_reward():
    spec, options = ADV_ESTIMATORS.spec("gdpo"), {"weights": [1.0, 2.0]}
    inputs = [*spec.required, "reward_components"]
    try_out(spec, inputs, options, rewards=2)
    with pytest.raises(InputError, match=r"gdpo: weights is .* expected 3 finite numbers"):
        try_out(spec, inputs, options, rewards=3)
