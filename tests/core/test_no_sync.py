"""Nothing we compute on a device makes the host wait for it.

Shown without one: a tensor on "meta" has a shape and no numbers, and takes the paths of a device, for it is not on the
CPU. Whoever asks for a number (`item`, `bool`, a boolean index) gets an error there, where a GPU would be waited for.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import rl_estimators
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES

B, T = 4, 33
WAITS = {"maxrl": "looks for negative scores, which it refuses"}


@pytest.fixture(autouse=True)
def autocast_knows_meta(monkeypatch):
    """`torch.autocast` refuses the device; ours only switch it off."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())


def batch():
    def floats(*shape):
        return torch.empty(*shape, device="meta")

    return {
        "token_level_rewards": floats(B, T),
        "response_mask": torch.empty(B, T, device="meta", dtype=torch.long),
        "values": floats(B, T),
        "reward_baselines": floats(B),
        "index": np.array(["a", "a", "b", "b"], dtype=object),
        "reward_components": floats(B, 2),
        "truncated": torch.empty(B, device="meta", dtype=torch.bool),
        "bootstrap_values": floats(B),
    }


def estimate(name):
    spec = ADV_ESTIMATORS.spec(name)
    return rl_estimators.estimate(name, **{key: x for key, x in batch().items() if spec.asks_for(key)})


def test_meta_tells():
    """The check can fail."""
    with pytest.raises(RuntimeError, match="meta"):
        bool((torch.empty(2, device="meta") > 0).any())
    with pytest.raises(NotImplementedError, match="meta"):
        torch.empty(2, device="meta")[torch.empty(2, device="meta", dtype=torch.bool)]


@pytest.mark.parametrize("name", [name for name in ADV_ESTIMATORS.names() if name not in WAITS])
def test_estimators(name):
    found = estimate(name)
    assert found.advantages.is_meta
    assert found.advantages.shape == (B, T)


@pytest.mark.parametrize("name", WAITS)
def test_those_that_wait_are_known(name):
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        estimate(name)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("name", POLICY_LOSSES.names())
def test_policy_losses(name, mode):
    x = batch()
    leaf = torch.empty(B, T, device="meta", requires_grad=True)
    loss, _ = rl_estimators.policy_loss(
        name, old_log_prob=x["values"], log_prob=leaf, advantages=x["token_level_rewards"],
        response_mask=x["response_mask"], loss_agg_mode=mode,
    )  # fmt: skip
    loss.backward()
    assert leaf.grad.is_meta


@pytest.mark.parametrize("name", VALUE_LOSSES.names())
def test_value_losses(name):
    x = batch()
    leaf = torch.empty(B, T, device="meta", requires_grad=True)
    loss, _ = rl_estimators.value_loss(
        name,
        vpreds=leaf,
        values=x["values"],
        returns=x["token_level_rewards"],
        response_mask=x["response_mask"],
    )
    loss.backward()
    assert leaf.grad.is_meta
