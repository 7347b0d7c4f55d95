"""Messages and metrics of the losses; their numbers are in test_against_reference.py and test_goldens.py."""

import pytest
import torch

import rl_estimators
from rl_estimators.errors import InputError


def policy(log_prob=((0.0, 0.0),), advantages=((1.0, 1.0),), mask=((1, 1),), **options):
    log_prob, advantages, mask = torch.tensor(log_prob), torch.tensor(advantages), torch.tensor(mask)
    return rl_estimators.policy_loss(
        "ppo_clip",
        old_log_prob=torch.zeros_like(log_prob),
        log_prob=log_prob,
        advantages=advantages,
        response_mask=mask,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_agg_mode": "token_mean"}, "loss_agg_mode is 'token_mean', expected one of .* Did you mean 'token-mean'?"),
        ({"clip_ratio_low": 1.5}, r"ppo_clip: clip_ratio_low is 1.5, expected a number in \[0, 1\]"),
        ({"clip_ratio_high": -0.1}, r"ppo_clip: clip_ratio_high is -0.1, expected a number in \[0, inf\]"),
        ({"clip_ratio_c": 0.5}, r"ppo_clip: clip_ratio_c is 0.5, expected a number in \[1, inf\]"),
        ({"clip_ratio": 0.2}, "ppo_clip has no option 'clip_ratio'. Did you mean 'clip_ratio_c'?"),
        ({"global_batch_info": {"dp_sizes": 2}}, "a key of global_batch_info is 'dp_sizes', .* Did you mean 'dp_size'?"),
        ({"global_batch_info": 3}, "aggregate: global_batch_info is 3, expected numbers by name: dp_size, batch_num_tokens"),
        ({"global_batch_info": {"dp_size": "3"}}, "aggregate: dp_size is '3', expected a number"),
        ({"global_batch_info": {"dp_size": 2}}, "'token-mean' with dp_size=2 needs batch_num_tokens, over all ranks"),
        (
            {"global_batch_info": {"dp_size": 2}, "loss_agg_mode": "seq-mean-token-sum"},
            "'seq-mean-token-sum' with dp_size=2 needs global_batch_size, over all ranks",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(InputError, match=message):
        policy(**options)


def test_negative_clip_range_of_the_value_loss():
    zero = torch.zeros(1, 1)
    with pytest.raises(InputError, match=r"clipped: cliprange_value is -1, expected a number in \[0, inf\]"):
        rl_estimators.value_loss(
            "clipped", vpreds=zero, values=zero, returns=zero, response_mask=zero, cliprange_value=-1
        )


def test_policy_metrics_count_valid_tokens_only():
    """Ratios 2 and 1/2 at advantage 1: the clip binds at the first; the masked third would bind too."""
    log_prob = ((0.6931472, -0.6931472, 0.6931472),)
    _, metrics = policy(log_prob, ((1.0, 1.0, 1.0),), ((1, 1, 0),))
    assert metrics["pg_clipfrac"].item() == pytest.approx(0.5)
    assert metrics["ppo_kl"].item() == pytest.approx(0.0, abs=1e-7)
    assert metrics["pg_clipfrac_lower"].item() == 0


def test_dual_clip_share():
    """Advantage -1, ratio 4: the loss 4 is bounded by c = 3; at ratio 2 it is not."""
    log_prob = ((1.3862944, 0.6931472),)
    loss, metrics = policy(log_prob, ((-1.0, -1.0),), clip_ratio_c=3.0)
    assert loss.item() == pytest.approx((3 + 2) / 2)
    assert metrics["pg_clipfrac_lower"].item() == pytest.approx(0.5)


def test_importance_weights_scale_each_token():
    """Ratio 1, advantages 1 and 1, weights 2 and 0.5, and NaN at a masked token: -(2 + 0.5) / 2."""
    weights = torch.tensor([[2.0, 0.5, float("nan")]])
    loss, _ = policy(((0.0, 0.0, 0.0),), ((1.0, 1.0, 1.0),), ((1, 1, 0),), rollout_is_weights=weights)
    assert loss.item() == pytest.approx(-1.25)


def test_metrics_are_detached_scalars():
    log_prob = torch.zeros(1, 2, requires_grad=True)
    loss, metrics = rl_estimators.policy_loss(
        "ppo_clip", old_log_prob=torch.zeros(1, 2), log_prob=log_prob, advantages=torch.ones(1, 2),
        response_mask=torch.ones(1, 2), clip_ratio_c=3.0,
    )  # fmt: skip
    assert loss.requires_grad
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_only_the_policy_in_training_gets_a_gradient():
    inputs = {
        name: torch.ones(1, 2, requires_grad=True) for name in ("old_log_prob", "log_prob", "advantages")
    }
    weights = torch.ones(1, 2, requires_grad=True)
    mask = torch.ones(1, 2)
    rl_estimators.policy_loss("ppo_clip", **inputs, response_mask=mask, rollout_is_weights=weights)[
        0
    ].backward()
    assert inputs["log_prob"].grad.tolist() == [[-0.5, -0.5]]
    assert [inputs["old_log_prob"].grad, inputs["advantages"].grad, weights.grad] == [None] * 3


@pytest.mark.parametrize("name", ["clipped", "mse"])
def test_only_the_critic_in_training_gets_a_gradient(name):
    inputs = {name: torch.full((1, 1), 2.0, requires_grad=True) for name in ("vpreds", "values")}
    returns = torch.ones(1, 1, requires_grad=True)
    rl_estimators.value_loss(name, **inputs, returns=returns, response_mask=torch.ones(1, 1))[0].backward()
    assert inputs["vpreds"].grad.tolist() == [[1.0]]
    assert [inputs["values"].grad, returns.grad] == [None, None]


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_a_global_batch_without_tokens_gives_zero(mode):
    info = {"batch_num_tokens": 0, "global_batch_size": 0}
    loss, _ = policy(mask=((0, 0),), loss_agg_mode=mode, global_batch_info=info)
    assert loss.item() == 0


@pytest.mark.parametrize("name", ["clipped", "huber", "mse"])
def test_metrics_of_half_precision_are_computed_in_fp32(name):
    inputs = dict.fromkeys(("vpreds", "values", "returns"), torch.full((1, 2), 0.1, dtype=torch.bfloat16))
    _, metrics = rl_estimators.value_loss(name, **inputs, response_mask=torch.ones(1, 2))
    assert metrics["vpred_mean"].dtype == torch.float32
