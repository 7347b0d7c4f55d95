"""A NaN among the log-probabilities, a critic that explodes: no weight becomes NaN, and the log says what was left out."""

import math
import re
from contextlib import nullcontext

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from faults import watch  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, PPOConfig, PPOTrainer, finite  # noqa: E402

POLICY = r"step 2: the policy's gradient is not finite, so its weights stay .*; rl_estimators/update_skipped counts"
CRITIC = r"step 2: the critic's gradient is not finite, so its weights stay .*; critic/update_skipped counts"


def ppo(folder, **fields):
    plain = {"num_generations": 1, "num_iterations": 1, "max_steps": 3, "learning_rate": 1e-2}
    return PPOConfig(**toy.settings(folder, **{**plain, **fields}))


def spoil(trainer, step=2, module=None, number=math.nan):
    """While an optimizer step is made, one hidden state is NaN: that before the first completion's first token.

    Returns how many log-probabilities that were to be differentiated were NaN, by forward pass.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    before = toy.digit_sort("task").DIGITS  # the prompt is the digits and a sign

    def hook(_, inputs, output):
        if torch.is_grad_enabled() and trainer.state.global_step == step - 1:
            poison = torch.zeros_like(output.last_hidden_state)
            poison[0, before] = number
            output.last_hidden_state = output.last_hidden_state + poison
        return output

    model.base_model.register_forward_hook(hook, prepend=True)  # before a shared critic's own
    original, seen = trainer._get_per_token_logps_and_entropies, []

    def counting(*args, **kwargs):
        found = original(*args, **kwargs)
        if torch.is_grad_enabled():
            seen.append(int(found[0].isnan().sum()))
        return found

    trainer._get_per_token_logps_and_entropies = counting
    return seen


def trained(trainer):
    """Train; returns what was warned of."""
    with pytest.warns(RuntimeWarning) as caught:
        trainer.train()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(("loss", "accumulate"), [("trl", 1), ("ppo_clip", 2), ("gspo", 1)])
def test_one_nan_log_probability_costs_one_step(tiny, tmp_path, loss, accumulate):
    """The second step is not taken: the weights are those of the first, and the third goes on from there."""
    fields = toy.settings(tmp_path, max_steps=3, policy_loss=loss, gradient_accumulation_steps=accumulate)
    fields |= {
        "per_device_train_batch_size": 8 // accumulate,
        "weight_decay": 0.1,
        "max_grad_norm": 2.0 - accumulate,
    }
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**fields), tiny)
    nans, seen = spoil(trainer), watch.AfterEachStep(trainer)
    with pytest.warns(RuntimeWarning, match=POLICY):
        trainer.train()
    assert sum(nans) == accumulate  # one in each micro-batch of the one step
    assert all(map(watch.finite, seen.policy))
    assert [watch.equal(*pair) for pair in zip(seen.policy, seen.policy[1:], strict=False)] == [
        False,
        True,
        False,
    ]
    assert watch.column(trainer, "rl_estimators/update_skipped") == [0, 1, 0]


def test_trl_alone_loses_every_weight(tiny, tmp_path):
    """The fault is real."""
    trainer = toy.make(GRPOTrainer, GRPOConfig(**toy.settings(tmp_path, max_steps=2)), tiny)
    spoil(trainer)
    trainer.train()
    assert not any(bool(x.isfinite().any()) for x in toy.weights(trainer).values())


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_policys_nan_and_the_critic(tiny, tmp_path, critic):
    """A separate critic does not notice; one on the policy's hidden states waits as well."""
    trainer = toy.make(PPOTrainer, ppo(tmp_path, critic=critic), tiny)
    nans, seen = spoil(trainer), watch.AfterEachStep(trainer)
    texts = trained(trainer)
    assert sum(nans) == 1
    assert all(map(watch.finite, seen.policy + seen.critic))
    assert watch.equal(seen.policy[1], seen.policy[2])
    assert watch.equal(seen.critic[1], seen.critic[2]) == (critic == "shared")
    assert watch.column(trainer, "rl_estimators/update_skipped") == [0, 1, 0]
    assert watch.column(trainer, "critic/update_skipped") == [0, float(critic == "shared"), 0]
    expected = [CRITIC, POLICY] if critic == "shared" else [POLICY]
    assert all(re.match(pattern, text) for pattern, text in zip(expected, texts, strict=True))


@pytest.mark.parametrize("number", [math.inf, math.nan], ids=str)
def test_values_that_are_not_finite_for_one_batch(tiny, tmp_path, number):
    """No completion of that batch is judged: neither model moves. The next batch is as any other."""
    trainer = toy.make(PPOTrainer, ppo(tmp_path, beta=0.0, kl_in_reward=False), tiny)
    seen = watch.AfterEachStep(trainer)

    def explode(module, inputs, output):
        return output + number if trainer.state.global_step == 1 else output

    trainer.critic.module.v_head.register_forward_hook(explode)
    with pytest.warns(RuntimeWarning, match=CRITIC):
        trainer.train()
    assert watch.column(trainer, "rl_estimators/excluded_responses") == [0, 8, 0]
    assert watch.column(trainer, "critic/update_skipped") == [0, 1, 0]
    assert watch.equal(seen.critic[1], seen.critic[2])
    assert not watch.equal(seen.critic[2], seen.critic[3])
    assert all(map(watch.finite, seen.policy + seen.critic))
    assert len(watch.column(trainer, "critic/values_mean")) == 2  # it is the mean over judged completions


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_critic_that_its_learning_rate_blew_up(tiny, tmp_path, critic):
    """After one step its values are some 1e31 and their squared error overflows.

    It does not recover, and each step says so; the weights of both are numbers still. A separate critic costs itself
    its steps, one on the policy's hidden states the policy's as well.
    """
    fields = {
        "critic": critic,
        "critic_learning_rate": 1e30,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
    }
    trainer = toy.make(PPOTrainer, ppo(tmp_path, beta=0.0, kl_in_reward=False, **fields), tiny)
    seen = watch.AfterEachStep(trainer)
    texts = trained(trainer)
    assert len(texts) == (4 if critic == "shared" else 2)
    assert abs(watch.column(trainer, "critic/values_mean")[1]) > 1e20
    assert watch.column(trainer, "critic/update_skipped") == [0, 1, 1]
    assert watch.column(trainer, "rl_estimators/update_skipped") == (
        [0, 1, 1] if critic == "shared" else [0, 0, 0]
    )
    assert all(map(watch.finite, seen.policy + seen.critic))
    assert watch.equal(seen.critic[1], seen.critic[3])
    assert watch.equal(seen.policy[1], seen.policy[3]) == (critic == "shared")


def test_under_fp16_the_gradient_scaler_decides(tiny, tmp_path):
    """It finds infinities in ordinary steps, until its scale fits, and needs the gradients to find them in."""
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**toy.settings(tmp_path)), tiny)
    parameter = next(trainer.model.parameters())
    for scaler, kept in ((object(), True), (None, False)):
        trainer.accelerator.scaler = scaler
        parameter.grad = torch.full_like(parameter, math.nan)
        with nullcontext() if kept else pytest.warns(RuntimeWarning, match="step 1: the policy's gradient"):
            finite.drop_unless_finite(trainer, trainer.model)
        assert (parameter.grad is not None) == kept


def test_a_large_finite_gradient_is_no_fault():
    """In half precision its sum of squares overflows: 1600 times 3e4 squared."""
    model = torch.nn.Linear(40, 40).half()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e4)
    assert finite._not_finite(model) == 0
    model.weight.grad[0, 0] = -math.inf
    assert finite._not_finite(model) == 1
