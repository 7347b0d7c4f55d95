"""Reward shaping: goldens by hand, verl and TRL beside them, NaN at masked positions, the KL controllers."""

import math

import pytest
import torch

from rl_estimators import shaping
from rl_estimators.errors import InputError
from rl_estimators.shaping import AdaptiveKLController, FixedKLController, kl_in_reward, kl_penalty

NAN, INF = math.nan, math.inf
verl = pytest.mark.verl
quiet = pytest.mark.filterwarnings(
    "ignore"
)  # verl's and TRL's imports warn about things that are none of ours


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(actual, *rows):
    torch.testing.assert_close(actual, matrix(*rows), rtol=1e-12, atol=1e-12)


# d = log pi_ref - log pi = (log 2, 0, -log 4): pi_ref / pi = (2, 1, 1/4)
L2 = math.log(2)
LOG_PROB, REF = matrix([-2 * L2, -1, -L2]), matrix([-L2, -1, -3 * L2])
BY_HAND = {
    "k1": [-L2, 0, 2 * L2],
    "k2": [L2**2 / 2, 0, 2 * L2**2],
    "k3": [2 - 1 - L2, 0, 1 / 4 - 1 + 2 * L2],
}


# ---- the penalty


@pytest.mark.parametrize("penalty", BY_HAND)
def test_penalty_by_hand(penalty):
    close(kl_penalty(LOG_PROB, REF, torch.ones(1, 3), penalty), BY_HAND[penalty])


def test_k1_is_the_default():
    close(kl_penalty(LOG_PROB, REF, torch.ones(1, 3)), BY_HAND["k1"])


@pytest.mark.parametrize("penalty", ["k1", "k3"])
def test_unbiased(penalty):
    """Policy (1/2, 1/4, 1/4), reference (1/4, 1/4, 1/2): KL = 1/2 log 2 + 0 - 1/4 log 2 = log(2) / 4."""
    p, q = matrix([0.5, 0.25, 0.25]), matrix([0.25, 0.25, 0.5])
    kl = kl_penalty(p.log(), q.log(), torch.ones(1, 3), penalty)
    assert (p * kl).sum().item() == pytest.approx(L2 / 4, rel=1e-12)


def test_k2_is_biased():
    """The same two: 1/2 (log 2)^2 / 2 + 1/4 (log 2)^2 / 2 = 3/8 (log 2)^2, not log(2) / 4."""
    p, q = matrix([0.5, 0.25, 0.25]), matrix([0.25, 0.25, 0.5])
    kl = kl_penalty(p.log(), q.log(), torch.ones(1, 3), "k2")
    assert (p * kl).sum().item() == pytest.approx(3 / 8 * L2**2, rel=1e-12)


@pytest.mark.parametrize("fill", [NAN, INF, -INF])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("penalty", BY_HAND)
def test_what_is_masked_is_not_read(penalty, mask_dtype, fill):
    mask = torch.tensor([[1, 0, 1]]).to(mask_dtype)
    hole = mask == 0
    kl = kl_penalty(LOG_PROB.masked_fill(hole, fill), REF.masked_fill(hole, fill), mask, penalty)
    first, _, last = BY_HAND[penalty]
    close(kl, [first, 0, last])
    assert kl[0, 1].item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("penalty", BY_HAND)
def test_half_precision_is_computed_in_float32(penalty, dtype):
    """Against Python floats fed the rounded numbers; e^d - 1 - d of numbers of at most 3: 1e-6."""
    a, b = LOG_PROB.to(dtype), REF.to(dtype)
    kl = kl_penalty(a, b, torch.ones(1, 3), penalty)
    assert kl.dtype == torch.float32
    formula = {"k1": lambda d: -d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(d) - 1 - d}[penalty]
    wanted = [formula(y - x) for x, y in zip(a[0].tolist(), b[0].tolist(), strict=True)]
    assert kl[0].tolist() == pytest.approx(wanted, abs=1e-6)


SMALL = torch.linspace(-1e-3, 1e-3, 201)[None]  # d, in float32


def test_k3_of_small_differences_is_accurate_and_never_negative():
    """e^d - 1 - d is d^2/2 + d^3/6 + ...; expm1(d) - d is off by at most an epsilon of d, 1.2e-10 for 1e-3."""
    kl = kl_penalty(torch.zeros_like(SMALL), SMALL, torch.ones_like(SMALL), "k3")
    d = SMALL.double()
    assert (kl >= 0).all()
    assert (kl.double() - (d**2 / 2 + d**3 / 6 + d**4 / 24)).abs().max().item() < 1.2e-10


def test_an_impossible_token_costs_what_it_costs():
    """The reference gives it probability 0: the k1 is infinite, and an estimator excludes and counts the response."""
    assert kl_penalty(matrix([-1.0]), matrix([-INF]), torch.ones(1, 1)).item() == INF


@pytest.mark.parametrize("call", [kl_penalty, lambda *x: kl_in_reward(x[0], *x[:3], 0.1, x[3])])
def test_unknown_penalty(call):
    with pytest.raises(InputError, match=r"penalty is 'k4', expected one of k1, k2, k3\."):
        call(LOG_PROB, REF, torch.ones(1, 3), "k4")


# ---- in the reward


@pytest.mark.parametrize("penalty", BY_HAND)
def test_in_reward_by_hand(penalty):
    """beta = 1/2: (1, 2, 3) less half the penalty."""
    rewards = kl_in_reward(matrix([1, 2, 3]), LOG_PROB, REF, torch.ones(1, 3), 0.5, penalty)
    close(rewards, [r - kl / 2 for r, kl in zip([1, 2, 3], BY_HAND[penalty], strict=True)])


@pytest.mark.parametrize("fill", [NAN, INF, 7.0])
def test_in_reward_what_is_masked_is_not_read(fill):
    hole = torch.tensor([[False, True, False]])
    inputs = [x.masked_fill(hole, fill) for x in (matrix([1, 2, 3]), LOG_PROB, REF)]
    before = [x.clone() for x in inputs]
    rewards = kl_in_reward(*inputs, ~hole, 0.5)
    close(rewards, [1 + L2 / 2, 0, 3 - L2])
    assert rewards[0, 1].item() == 0
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(inputs, before, strict=True))


def test_beta_0_reads_no_log_probability():
    bad = torch.full((1, 3), NAN, dtype=torch.float64)
    close(kl_in_reward(matrix([1, 2, 3]), bad, bad, torch.tensor([[1, 0, 1]]), 0.0), [1, 0, 3])


def test_in_reward_keeps_float64_if_any_is():
    ones = torch.ones(1, 3)
    assert kl_in_reward(ones, LOG_PROB, REF, ones, 0.1).dtype == torch.float64
    assert kl_in_reward(ones.bfloat16(), ones.bfloat16(), ones.bfloat16(), ones, 0.1).dtype == torch.float32


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        (-0.1, r"kl_in_reward: beta is -0.1, expected a number in \[0, inf\]"),
        (
            FixedKLController(0.1),
            r"beta is FixedKLController\(value=0.1\), expected a number; pass its .value",
        ),
    ],
)
def test_odd_betas_are_refused(beta, message):
    with pytest.raises(InputError, match=message):
        kl_in_reward(LOG_PROB, LOG_PROB, REF, torch.ones(1, 3), beta)


# ---- the controllers


def test_a_fixed_coefficient_stays():
    controller = FixedKLController(0.3)
    controller.update(current_kl=100.0, n_steps=1000)
    assert controller.value == 0.3


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1.01),  # e = 0.1, K = 0.1
        (5.4, 0.99),
        (60.0, 1.02),  # e clipped to 0.2
        (0.0, 0.98),
        (-3.0, 0.98),  # k1 may be negative
        (INF, 1.02),
    ],
)
def test_an_adaptive_coefficient_by_hand(kl, factor):
    """Target 6 nats; 512 responses over a horizon of 5120 make the paper's K = 0.1."""
    controller = AdaptiveKLController(value=0.2, target=6.0, horizon=5120)
    controller.update(kl, n_steps=512)
    assert controller.value == pytest.approx(0.2 * factor, rel=1e-12)


def test_a_loop_with_the_controller_finds_the_target():
    """If the KL is 1 / beta the coefficient must end at 1 / target = 0.25; each step closes K of the gap."""
    controller = AdaptiveKLController(value=1.0, target=4.0, horizon=1000)
    for _ in range(300):
        controller.update(1 / controller.value, n_steps=100)
    assert controller.value == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedKLController(-1.0), r"FixedKLController: value is -1.0, expected a number in \[0, inf\]"),
        (lambda: AdaptiveKLController(value=-1.0), "AdaptiveKLController: value is -1.0, expected a number in"),
        (lambda: AdaptiveKLController(target=0.0), "target is 0.0, expected a number above 0"),
        (lambda: AdaptiveKLController(target=NAN), "target is nan, expected a number above 0"),
        (lambda: AdaptiveKLController(target="0.1"), "AdaptiveKLController: target is '0.1', expected a number"),
        (lambda: AdaptiveKLController(horizon=0), "horizon is 0, expected a number above 0"),
        (lambda: AdaptiveKLController().update(NAN, 1), "current_kl is nan; leave out responses whose"),
    ],
)  # fmt: skip
def test_odd_controllers_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ---- length

LENGTHS = [0, 79, 80, 81, 90, 99, 100, 101, 500]
OVERLONG = [0, 0, 0, -0.05, -0.5, -0.95, -1, -1, -1]  # L = 100, c = 20: (80 - n) / 20


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64])
def test_overlong_by_hand(dtype):
    penalty = shaping.overlong_penalty(torch.tensor(LENGTHS).to(dtype), 100, 20)
    assert penalty.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert penalty.tolist() == pytest.approx(OVERLONG, rel=1e-6)
    assert penalty[:3].tolist() == [0, 0, 0]


def test_overlong_without_a_buffer_is_a_step():
    assert shaping.overlong_penalty(torch.tensor([0, 99, 100, 101]), 100, 0).tolist() == [0, 0, 0, -1]


def test_overlong_with_nothing_but_buffer():
    """c = L = 4: -n / 4."""
    assert shaping.overlong_penalty(torch.tensor([0, 1, 4, 5]), 4, 4).tolist() == [0, -0.25, -1, -1]


@pytest.mark.parametrize(
    ("limit", "buffer", "message"),
    [
        (-1, 0, r"overlong_penalty: max_length is -1, expected a number in \[0, inf\]"),
        (10, 11, r"overlong_penalty: buffer is 11, expected a number in \[0, 10\]"),
        (10, -1, r"overlong_penalty: buffer is -1, expected a number in \[0, 10\]"),
    ],
)
def test_overlong_out_of_range(limit, buffer, message):
    with pytest.raises(InputError, match=message):
        shaping.overlong_penalty(torch.tensor([1]), limit, buffer)


@pytest.mark.parametrize("lengths", [[1, 2], torch.tensor([1, 2]).numpy()])
def test_overlong_wants_a_tensor(lengths):
    kind = type(lengths).__name__
    message = f"overlong_penalty: lengths has type {kind}, expected a torch.Tensor"
    with pytest.raises(InputError, match=message):
        shaping.overlong_penalty(lengths, 10, 5)


# ---- verl and TRL


def core_algos():
    return pytest.importorskip("verl.trainer.ppo.core_algos")


def drawn():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.tensor([6, 3, 1, 4])[:, None] > torch.arange(6)
    return draws[0], -draws[1].abs(), -draws[2].abs(), mask


@verl
@quiet
@pytest.mark.parametrize("penalty", BY_HAND)
def test_penalty_as_verls(penalty):
    _, log_prob, ref, mask = drawn()
    theirs = core_algos().kl_penalty(log_prob, ref, penalty) * mask
    torch.testing.assert_close(kl_penalty(log_prob, ref, mask, penalty), theirs, rtol=1e-12, atol=1e-15)


@verl
@quiet
@pytest.mark.parametrize("penalty", BY_HAND)
def test_in_reward_as_verls_apply_kl_penalty(penalty):
    """Its formula: token_level_scores - beta * (kld * response_mask)."""
    rewards, log_prob, ref, mask = drawn()
    theirs = rewards - 0.3 * (core_algos().kl_penalty(log_prob, ref, kl_penalty=penalty) * mask)
    ours = kl_in_reward(rewards, log_prob, ref, mask, 0.3, penalty)
    torch.testing.assert_close(ours, theirs * mask, rtol=1e-12, atol=1e-12)


@verl
@quiet
def test_nan_at_padding_is_nan_in_verl():
    """Where kld * response_mask is 0 * NaN; here it is 0."""
    theirs = core_algos().kl_penalty(matrix([-1, NAN]), matrix([-2, NAN]), "k1") * torch.tensor([[1, 0]])
    assert theirs[0, 1].isnan()
    assert kl_penalty(matrix([-1, NAN]), matrix([-2, NAN]), torch.tensor([[1, 0]]))[0, 1].item() == 0


@verl
@quiet
def test_k3_of_a_far_token_is_10_in_verl():
    """d = 3: e^3 - 4 = 16.09, clamped."""
    theirs = core_algos().kl_penalty(matrix([-4]), matrix([-1]), "k3").item()
    ours = kl_penalty(matrix([-4]), matrix([-1]), torch.ones(1, 1), "k3").item()
    assert theirs == 10
    assert ours == pytest.approx(math.exp(3) - 4, rel=1e-12)


@verl
@quiet
def test_k3_of_small_differences_is_mostly_rounding_in_verl():
    """Negative for some of them, which no KL estimate of this form is."""
    assert (core_algos().kl_penalty(torch.zeros_like(SMALL), SMALL, "k3") < 0).any()


@verl
@quiet
def test_controllers_as_verls():
    theirs = core_algos().AdaptiveKLController(0.2, 0.1, 10000)
    ours = AdaptiveKLController(0.2, 0.1, 10000)
    for kl in (0.05, 0.5, 0.11, 0.1, -0.2, 0.098):
        theirs.update(kl, 256)
        ours.update(kl, 256)
        assert ours.value == pytest.approx(theirs.value, rel=1e-12)


@verl
@quiet
def test_controllers_defaults_are_verls():
    from verl.trainer.config import KLControlConfig

    config = KLControlConfig()
    ours = AdaptiveKLController()
    assert (ours.value, ours.target, ours.horizon) == (config.kl_coef, config.target_kl, config.horizon)


@pytest.mark.trl
@quiet
def test_overlong_as_trls():
    other = pytest.importorskip("trl.rewards.other_rewards")
    theirs = other.get_soft_overlong_punishment(100, 20)([[0] * n for n in LENGTHS])
    ours = shaping.overlong_penalty(torch.tensor(LENGTHS, dtype=torch.float64), 100, 20).tolist()
    assert ours == pytest.approx(theirs, rel=1e-12)


class Letters:
    """As much of a tokenizer as verl's reward manager needs."""

    eos_token = "."

    def decode(self, ids, skip_special_tokens):
        return "a" * len(ids)


@verl
@quiet
def test_overlong_goes_on_beyond_minus_1_in_verl():
    """A response of 8 tokens with L = 4, c = 2: (2 - 8) / 2 = -3, where DAPO's eq. 13 says -1."""
    pytest.importorskip("verl")
    from types import SimpleNamespace

    import numpy as np
    from verl import DataProto
    from verl.workers.reward_manager.dapo import DAPORewardManager

    manager = DAPORewardManager(
        Letters(),
        num_examine=0,
        compute_score=lambda **_: 0.0,
        max_resp_len=4,
        overlong_buffer_cfg=SimpleNamespace(enable=True, len=2, penalty_factor=1.0, log=False),
    )
    data = DataProto.from_dict(
        tensors={
            "prompts": torch.zeros(1, 1).long(),
            "responses": torch.zeros(1, 8).long(),
            "attention_mask": torch.ones(1, 9).long(),
        },
        non_tensors={
            "reward_model": np.array([{"ground_truth": ""}], dtype=object),
            "data_source": np.array(["digits"], dtype=object),
        },
    )
    assert manager(data).sum().item() == -3
    assert shaping.overlong_penalty(torch.tensor([8]), 4, 2).item() == -1
