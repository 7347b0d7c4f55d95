"""Numerical traps of verl 0.9.1's estimators and losses: ours does not fall in, and verl's own function does.

The verl half pins the difference. When one of those tests fails after an upgrade, upstream has changed (probably been
repaired): look again at what we say about it. What verl returned is written beside each expectation.
"""

import importlib.metadata
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rl_estimators

NAN, INF = math.nan, math.inf


def verl_functions():
    """verl.trainer.ppo.core_algos; its import takes seconds, so only when a test asks for it."""
    pytest.importorskip("verl")
    version = importlib.metadata.version("verl")
    if not version.startswith("0.9."):
        pytest.skip(f"pins verl 0.9, found {version}")
    from verl.trainer.ppo import core_algos

    return core_algos


def verl(function):
    """Needs verl, whose imports warn about things that are none of ours."""
    return pytest.mark.verl(pytest.mark.filterwarnings("ignore")(function))


CONFIG = SimpleNamespace(gamma=1.0)


def verl_estimate(name, rewards, mask, **given):
    """The call verl's trainer would make; (advantages, returns)."""
    core_algos = verl_functions()
    if name == "gae":
        return core_algos.compute_gae_advantage_return(rewards, given["values"], mask, 1.0, 1.0)
    if name == "grpo":
        return core_algos.compute_grpo_outcome_advantage(rewards, mask, given["index"])
    if name == "reinforce_pp":
        return core_algos.compute_reinforce_plus_plus_outcome_advantage(rewards, mask, config=CONFIG)
    return core_algos.compute_remax_outcome_advantage(rewards, given["reward_baselines"], mask, config=CONFIG)


def our_estimate(name, rewards, mask, **given):
    return rl_estimators.estimate(name, token_level_rewards=rewards, response_mask=mask, **given)


def inputs_of(name, rows, width):
    """What a name needs beside rewards and mask."""
    return {
        "gae": {"values": torch.zeros(rows, width)},
        "grpo": {"index": np.array(["a"] * rows, dtype=object)},
        "remax": {"reward_baselines": torch.zeros(rows)},
    }.get(name, {})


# ---- NaN or inf at padding: 0 * NaN is NaN


def padded_batch(name, fill):
    """Two responses of two tokens, padded by one."""
    rewards, mask = (
        torch.tensor([[0.0, 1.0, fill], [0.0, 3.0, fill]]),
        torch.tensor([[1.0, 1, 0], [1.0, 1, 0]]),
    )
    given = inputs_of(name, 2, 3)
    if name == "gae":
        given["values"][:, 2] = fill
    return rewards, mask, given


EVERY = ["gae", "grpo", "reinforce_pp", "remax"]


@pytest.mark.parametrize("fill", [NAN, INF, -INF])
@pytest.mark.parametrize("name", EVERY)
def test_padding_is_never_read(name, fill):
    rewards, mask, given = padded_batch(name, fill)
    clean_rewards, _, clean_given = padded_batch(name, 0.0)
    actual, clean = (
        our_estimate(name, rewards, mask, **given),
        our_estimate(name, clean_rewards, mask, **clean_given),
    )
    assert torch.equal(actual.advantages, clean.advantages)
    assert torch.equal(actual.returns, clean.returns)


@verl
@pytest.mark.parametrize("fill", [NAN, INF])
@pytest.mark.parametrize("name", EVERY)
def test_padding_reaches_valid_tokens_in_verl(name, fill):
    """Each valid advantage turns NaN."""
    rewards, mask, given = padded_batch(name, fill)
    advantages, _ = verl_estimate(name, rewards, mask, **given)
    assert advantages[:, :2].isnan().all()


# ---- a group of equal scores in float32


TIES = [([0.7] * 7, 0.056), ([1000.1] * 7, 0.98)]


def tied(scores):
    rows = len(scores)
    return torch.tensor(scores)[:, None], torch.ones(rows, 1), inputs_of("grpo", rows, 1)


@pytest.mark.parametrize(("scores", "_"), TIES)
def test_equal_scores_are_worth_exactly_nothing(scores, _):
    rewards, mask, given = tied(scores)
    assert (our_estimate("grpo", rewards, mask, **given).advantages == 0).all()


@verl
@pytest.mark.parametrize(("scores", "seen"), TIES)
def test_equal_scores_are_worth_something_in_verl(scores, seen):
    """The mean of seven equal float32 numbers is off by a rounding, and the std is that rounding."""
    rewards, mask, given = tied(scores)
    advantages, _ = verl_estimate("grpo", rewards, mask, **given)
    assert advantages.abs().max().item() == pytest.approx(seen, rel=0.25)  # depends on the order of the sum


# ---- a constant batch, whitened


def constant_batch(rows):
    """Rewards of 1000.1 at the end of three tokens: the mean of 3 rows such numbers may be off by a rounding."""
    rewards = torch.zeros(rows, 3)
    rewards[:, -1] = 1000.1
    return rewards, torch.ones(rows, 3)


@pytest.mark.parametrize("rows", range(1, 9))
def test_a_constant_batch_has_no_advantage(rows):
    assert (our_estimate("reinforce_pp", *constant_batch(rows)).advantages == 0).all()


@verl
def test_a_constant_batch_has_an_advantage_in_verl():
    """0.76 for 5 rows here; for which sizes the mean is off depends on the order of the sum, so any will do."""
    seen = [
        verl_estimate("reinforce_pp", *constant_batch(rows))[0].abs().max().item() for rows in range(1, 9)
    ]
    assert max(seen) > 0.1


# ---- rewards on masked tokens


MISPLACED = torch.tensor([[0.0, 0.0, 5.0], [0.0, 1.0, 0.0]])
SHORT = torch.tensor([[1.0, 1, 0], [1.0, 1, 0]])


@pytest.mark.parametrize("name", EVERY)
def test_rewards_on_masked_tokens_never_count(name):
    given = inputs_of(name, 2, 3)
    actual = our_estimate(name, MISPLACED, SHORT, **given)
    assert torch.equal(actual.advantages, our_estimate(name, MISPLACED * SHORT, SHORT, **given).advantages)
    # the first response scores 0, the second 1
    assert (actual.advantages[0, 0] < actual.advantages[1, 0]).item()


@verl
@pytest.mark.parametrize(
    ("name", "counts"), [("gae", False), ("reinforce_pp", False), ("remax", False), ("grpo", True)]
)
def test_rewards_on_masked_tokens_count_in_grpo_only_in_verl(name, counts):
    """With the masked 5 counted, the first response is the better one."""
    advantages, _ = verl_estimate(name, MISPLACED, SHORT, **inputs_of(name, 2, 3))
    assert (advantages[0, 0] > advantages[1, 0]).item() is counts


# ---- whitening 0 or 1 valid token


FEW = [torch.zeros(2, 3), torch.tensor([[0.0, 1, 0], [0, 0, 0]])]


@pytest.mark.parametrize("mask", FEW)
@pytest.mark.parametrize("name", ["gae", "reinforce_pp"])
def test_too_few_tokens_to_whiten_are_worth_nothing(name, mask):
    assert (our_estimate(name, torch.ones(2, 3), mask, **inputs_of(name, 2, 3)).advantages == 0).all()


@verl
@pytest.mark.parametrize(
    ("mask", "message"), [(FEW[0], "At least one element"), (FEW[1], "The sum of the mask is one")]
)
@pytest.mark.parametrize("name", ["gae", "reinforce_pp"])
def test_too_few_tokens_to_whiten_raise_in_verl(name, mask, message):
    with pytest.raises(ValueError, match=message):
        verl_estimate(name, torch.ones(2, 3), mask, **inputs_of(name, 2, 3))


# ---- bool masks


@pytest.mark.parametrize("name", EVERY)
def test_a_bool_mask_is_a_mask(name):
    rewards, mask, given = padded_batch(name, 0.0)
    actual, wanted = (our_estimate(name, rewards, m, **given) for m in (mask.bool(), mask))
    assert torch.equal(actual.advantages, wanted.advantages)


@verl
@pytest.mark.parametrize("name", ["gae", "reinforce_pp"])
def test_a_bool_mask_raises_in_verl(name):
    rewards, mask, given = padded_batch(name, 0.0)
    with pytest.raises(RuntimeError, match="bool"):
        verl_estimate(name, rewards, mask.bool(), **given)


# ---- bfloat16 rewards


def bfloat16_batch():
    """1024 process rewards of about 1/1000, already rounded to bfloat16, and their exact sum."""
    rewards = (1e-3 * torch.rand(2, 1024, generator=torch.Generator().manual_seed(0))).bfloat16()
    return rewards, torch.ones(2, 1024), rewards.double().sum(-1)


def relative_error(returns, wanted):
    return ((returns[:, 0].double() - wanted) / wanted).abs().max().item()


def test_bfloat16_rewards_are_summed_in_float32():
    rewards, mask, wanted = bfloat16_batch()
    actual = our_estimate("remax", rewards, mask, reward_baselines=torch.zeros(2))
    assert actual.returns.dtype == torch.float32
    # 1024 additions in float32: see recursion() in reference/tolerance.py, 5 sqrt(1024) 1.2e-7
    assert relative_error(actual.returns, wanted) < 2e-5


@verl
def test_bfloat16_rewards_lose_digits_in_verl():
    """The input's dtype is kept for the sums: an error of a part in a few hundred."""
    rewards, mask, wanted = bfloat16_batch()
    _, returns = verl_estimate("remax", rewards, mask.bfloat16(), reward_baselines=torch.zeros(2).bfloat16())
    assert returns.dtype == torch.bfloat16
    assert relative_error(returns, wanted) > 5e-4


# ---- returns at holes


def batch_with_a_hole():
    """r = 1 at the end, V = 0 but for a value of 50 at the masked token."""
    rewards, mask = torch.tensor([[0.0, 0, 1], [0, 0, 2]]), torch.tensor([[1.0, 0, 1], [1, 0, 1]])
    return rewards, mask, {"values": torch.tensor([[0.0, 50, 0], [0, 50, 0]])}


def test_returns_are_zero_at_holes():
    rewards, mask, given = batch_with_a_hole()
    returns = our_estimate("gae", rewards, mask, **given).returns
    assert torch.equal(returns, torch.tensor([[1.0, 0, 1], [2, 0, 2]]))


@verl
def test_returns_at_holes_hold_garbage_in_verl():
    """A carried over from the next step plus the V that stands there: 1 + 50, 2 + 50."""
    rewards, mask, given = batch_with_a_hole()
    _, returns = verl_estimate("gae", rewards, mask, **given)
    assert torch.equal(returns, torch.tensor([[1.0, 51, 1], [2, 52, 2]]))


# ---- a group of one


ALONE = torch.tensor([[5.0]]), torch.ones(1, 1)


def test_a_group_of_one_has_no_advantage():
    assert our_estimate("grpo", *ALONE, index=["a"]).advantages.item() == 0


def test_a_group_of_one_can_have_its_raw_score():
    """As verl does, when asked: 5 / (1 + 1e-6)."""
    raw = our_estimate("grpo", *ALONE, index=["a"], singleton="raw").advantages.item()
    assert raw == pytest.approx(5 / (1 + 1e-6), rel=1e-6)


@verl
def test_a_group_of_one_has_its_raw_score_in_verl():
    advantages, _ = verl_estimate("grpo", *ALONE, index=np.array(["a"], dtype=object))
    assert advantages.item() == pytest.approx(5 / (1 + 1e-6), rel=1e-6)


# ---- uids read as numbers


SCORES = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
LEADING_ZERO = np.array(["1", "1", "01", "01"], dtype=object)


def test_uids_are_names_not_numbers():
    """Two groups, each half up, half down."""
    a = our_estimate("grpo", SCORES, torch.ones(4, 1), index=LEADING_ZERO, norm_by_std=False).advantages
    assert torch.equal(a, torch.tensor([[-1.0], [1], [-2], [2]]))


@verl
def test_uids_that_look_alike_are_merged_in_verl():
    """grpo_vectorized: "1" and "01" are one group of mean 6.5."""
    a, _ = verl_functions().compute_grpo_vectorized_outcome_advantage(
        SCORES, torch.ones(4, 1), LEADING_ZERO, norm_adv_by_std_in_grpo=False
    )
    assert torch.equal(a, torch.tensor([[-6.5], [-4.5], [3.5], [7.5]]))


HUGE = torch.tensor([2**62, 2**62, 3, 3])


def test_large_uids_take_no_memory():
    a = our_estimate("grpo", SCORES, torch.ones(4, 1), index=HUGE, norm_by_std=False).advantages
    assert torch.equal(a, torch.tensor([[-1.0], [1], [-2], [2]]))


@verl
def test_large_uids_size_arrays_in_verl():
    """An array of 2^62 floats is asked for."""
    with pytest.raises(RuntimeError, match=r"(?i)memory|size|overflow"):
        verl_functions().compute_grpo_vectorized_outcome_advantage(SCORES, torch.ones(4, 1), HUGE)


# ---- losses


MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
SEQUENCE_MODES = MODES[2:]


def policy_inputs(fill, mask):
    """On policy with advantage 1: a loss of -1 per valid token."""
    log_prob = torch.where(mask.bool(), -1.0, fill)
    return {
        "old_log_prob": log_prob.clone(),
        "log_prob": log_prob.requires_grad_(),
        "advantages": torch.ones_like(mask),
        "response_mask": mask,
    }


def verl_policy_loss(mode, inputs):
    core_algos = verl_functions()
    from verl.workers.config import ActorConfig

    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    return core_algos.compute_policy_loss_vanilla(**inputs, loss_agg_mode=mode, config=config)[0]


PADDED = torch.tensor([[1.0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_nan_log_prob_at_padding_does_not_matter(mode):
    inputs = policy_inputs(NAN, PADDED)
    loss, _ = rl_estimators.policy_loss("ppo_clip", **inputs, loss_agg_mode=mode)
    loss.backward()
    assert loss.isfinite()
    assert inputs["log_prob"].grad.isfinite().all()
    assert (inputs["log_prob"].grad[PADDED == 0] == 0).all()
    assert (inputs["log_prob"].grad[PADDED == 1] < 0).all()


@verl
@pytest.mark.parametrize("mode", MODES)
def test_nan_log_prob_at_padding_is_nan_in_verl(mode):
    """In the sequence modes, which multiply by the mask where the token modes select."""
    assert verl_policy_loss(mode, policy_inputs(NAN, PADDED)).isnan().item() is (mode in SEQUENCE_MODES)


def value_inputs(fill):
    """Predictions of 1 for targets of 0: a loss of 1/2 per valid token."""
    zeros = torch.zeros_like(PADDED)
    vpreds = torch.where(PADDED.bool(), 1.0, fill).requires_grad_()
    return {"vpreds": vpreds, "values": zeros, "returns": zeros, "response_mask": PADDED}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["mse", "clipped"])
def test_nan_prediction_at_padding_does_not_matter(name, mode):
    inputs = value_inputs(NAN)
    loss, _ = rl_estimators.value_loss(name, **inputs, loss_agg_mode=mode)
    loss.backward()
    assert loss.isfinite()
    assert (inputs["vpreds"].grad[PADDED == 0] == 0).all()
    assert (inputs["vpreds"].grad[PADDED == 1] > 0).all()


@verl
@pytest.mark.parametrize("mode", MODES)
def test_nan_prediction_at_padding_spoils_the_gradient_in_verl(mode):
    """Even where the loss is finite (token modes), the gradient at the padding is 0 * NaN."""
    inputs = value_inputs(NAN)
    loss, _ = verl_functions().compute_value_loss(**inputs, cliprange_value=0.5, loss_agg_mode=mode)
    loss.backward()
    assert loss.isnan().item() is (mode in SEQUENCE_MODES)
    assert inputs["vpreds"].grad[PADDED == 0].isnan().all()


EMPTY = torch.zeros(2, 3)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_micro_batch_is_zero(mode):
    inputs = policy_inputs(0.0, EMPTY)
    loss, _ = rl_estimators.policy_loss("ppo_clip", **inputs, loss_agg_mode=mode)
    loss.backward()
    assert loss.item() == 0
    assert (inputs["log_prob"].grad == 0).all()


@verl
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_micro_batch_is_nan_in_verl(mode):
    """0 / 0, in every mode that divides."""
    loss = verl_policy_loss(mode, policy_inputs(0.0, EMPTY))
    assert loss.isnan().item() is (mode != "token-sum")


# ---- not in the list, met on the way


def test_remax_discounts():
    """r = (0, 1), gamma = 1/2: G = (1/2, 1)."""
    returns = our_estimate(
        "remax", torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), reward_baselines=torch.zeros(1), gamma=0.5
    ).returns
    assert torch.equal(returns, torch.tensor([[0.5, 1.0]]))


@verl
def test_remax_does_not_discount_in_verl():
    """config.gamma is not read."""
    _, returns = verl_functions().compute_remax_outcome_advantage(
        torch.tensor([[0.0, 1.0]]), torch.zeros(1), torch.ones(1, 2), config=SimpleNamespace(gamma=0.5)
    )
    assert torch.equal(returns, torch.tensor([[1.0, 1.0]]))


def shared_nan():
    """The first response's reward is NaN."""
    return torch.tensor([[NAN], [1.0], [3.0], [0.0], [8.0]]), torch.ones(5, 1)


@pytest.mark.parametrize("name", EVERY)
def test_one_bad_score_stays_where_it_is(name):
    rewards, mask = shared_nan()
    rest = our_estimate(name, rewards[1:], mask[1:], **inputs_of(name, 4, 1)).advantages
    actual = our_estimate(name, rewards, mask, **inputs_of(name, 5, 1)).advantages
    torch.testing.assert_close(actual, torch.cat([torch.zeros(1, 1), rest]))


@verl
@pytest.mark.parametrize("name", ["gae", "grpo", "reinforce_pp"])
def test_one_bad_score_spreads_in_verl(name):
    """To its group in GRPO, to the batch where advantages are whitened."""
    rewards, mask = shared_nan()
    assert verl_estimate(name, rewards, mask, **inputs_of(name, 5, 1))[0].isnan().all()


@pytest.mark.parametrize("name", ["grpo", "rloo", "opo", "gpg", "grpo_passk", "maxrl"])
def test_process_rewards_of_equal_sum_are_equal_scores(name):
    """The same twenty rewards in every row, in another order and at other places: fp32 sums would differ.

    Exactly 0 all the same: sums of fp32 numbers of similar size are exact in fp64.
    """
    random = torch.Generator().manual_seed(0)
    values = 50 + torch.rand(20, generator=random)
    rewards, mask = torch.zeros(4, 40), torch.zeros(4, 40)
    for row in range(4):
        places = torch.randperm(40, generator=random)[:20]
        rewards[row, places] = values[torch.randperm(20, generator=random)]
        mask[row, places] = 1
    assert len({*rewards.sum(-1).tolist()}) > 1, "the case would show nothing"
    given = {"token_level_rewards": rewards, "response_mask": mask, "index": ["q"] * 4}
    assert (rl_estimators.estimate(name, **given).advantages == 0).all()


def test_a_score_of_zero_made_of_rewards_that_round_is_not_negative():
    """0.7 - 0.6 - 0.1 is -3.7e-8 in fp32; `maxrl` refuses negative scores, not rounding errors."""
    rewards = torch.tensor([[0.7, -0.6, -0.1], [1.0, 0.0, 0.0]])
    given = {"token_level_rewards": rewards, "response_mask": torch.ones(2, 3), "index": ["q", "q"]}
    assert rl_estimators.estimate("maxrl", **given).advantages.tolist() == [[-1.0] * 3, [1.0] * 3]
