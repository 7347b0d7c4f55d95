"""Small batches worked by hand; the derivation stands in each test.

All in float64; the numbers are short sums and products, so 1e-12 leaves room for rounding only.
"""

import math

import pytest
import torch
from by_hand import close, estimate, matrix

import rl_estimators

ROOT2 = math.sqrt(2)


# ---- gae


def test_gae_by_hand():
    """gamma = 0.9, lam = 0.5, so each error counts gamma lam = 0.45 of the next.

    r = (1, 0, 2), V = (0.5, 1, 2):
    delta_3 = 2 - 2                = 0
    delta_2 = 0 + 0.9 * 2 - 1      = 0.8
    delta_1 = 1 + 0.9 * 1 - 0.5    = 1.4
    A_3 = 0, A_2 = 0.8 + 0.45 * 0 = 0.8, A_1 = 1.4 + 0.45 * 0.8 = 1.76; returns A + V = (2.26, 1.8, 2)
    """
    got = estimate("gae", [[1, 0, 2]], values=matrix([0.5, 1, 2]), gamma=0.9, lam=0.5, whiten=False)
    close(got.advantages, [1.76, 0.8, 0])
    close(got.returns, [2.26, 1.8, 2])


def test_gae_with_a_hole():
    """The same three steps with a masked position inside: the same numbers around a 0, whatever stands there."""
    got = estimate(
        "gae",
        [[1, 50, 0, 2]],
        mask=[[1, 0, 1, 1]],
        values=matrix([0.5, -50, 1, 2]),
        gamma=0.9,
        lam=0.5,
        whiten=False,
    )
    close(got.advantages, [1.76, 0, 0.8, 0])
    close(got.returns, [2.26, 0, 1.8, 2])


def test_gae_lam_0_is_the_td_error():
    """A_k = r_k + gamma V_{k+1} - V_k: 1 + 0.5 * 4 - 2 = 1; 3 + 0.5 * 8 - 4 = 3; 5 + 0 - 8 = -3."""
    got = estimate("gae", [[1, 3, 5]], values=matrix([2, 4, 8]), gamma=0.5, lam=0.0, whiten=False)
    close(got.advantages, [1, 3, -3])


def test_gae_lam_1_is_the_monte_carlo_return_minus_v():
    """The V in between cancel. G_3 = 5, G_2 = 3 + 0.5 * 5 = 5.5, G_1 = 1 + 0.5 * 5.5 = 3.75; minus V = (2, 4, 8)."""
    got = estimate("gae", [[1, 3, 5]], values=matrix([2, 4, 8]), gamma=0.5, lam=1.0, whiten=False)
    close(got.advantages, [1.75, 1.5, -3])
    close(got.returns, [3.75, 5.5, 5])


def test_gae_undiscounted_returns_are_the_rewards_to_go():
    """gamma = lam = 1: A + V = sum of the rewards still to come: 9, 8, 5."""
    got = estimate("gae", [[1, 3, 5]], values=matrix([2, 4, 8]), whiten=False)
    close(got.returns, [9, 8, 5])
    close(got.advantages, [7, 4, -3])


def test_gae_whitened():
    """V = 0, gamma = lam = 1: A = G. Row 1: (1, 1), row 2: (4), the last masked.

    Mean 2, variance (1 + 1 + 4) / (3 - 1) = 3; whitened (1 - 2, 1 - 2, 4 - 2) / sqrt(3 + 1e-8); returns stay G.
    """
    got = estimate("gae", [[0, 1], [4, 9]], mask=[[1, 1], [1, 0]], values=torch.zeros(2, 2).double())
    s = math.sqrt(3 + 1e-8)
    close(got.advantages, [-1 / s, -1 / s], [2 / s, 0])
    close(got.returns, [1, 1], [4, 0])


def test_gae_non_finite_score():
    """Row 2 has a NaN: it is not in the moments (those of test_gae_whitened), its A is 0 and its returns are V."""
    got = estimate(
        "gae",
        [[0, 1], [math.nan, 1], [4, 9]],
        mask=[[1, 1], [1, 1], [1, 0]],
        values=matrix([0, 0], [7, 8], [0, 9]),
    )
    s = math.sqrt(3 + 1e-8)
    close(got.advantages, [-1 / s, -1 / s], [0, 0], [2 / s, 0])
    close(got.returns, [1, 1], [7, 8], [4, 0])


# ---- grpo


def test_grpo_by_hand():
    """Group a scores 1 and 3: mean 2, unbiased std sqrt(2). Group b scores 0, 0, 3: mean 1, std sqrt(6 / 2)."""
    got = estimate(
        "grpo",
        [[0, 1], [0, 0], [1, 2], [0, 0], [3, 0]],
        mask=[[1, 1], [1, 0], [1, 1], [1, 1], [1, 1]],
        index=["a", "b", "a", "b", "b"],
    )
    a, b = 1 / (ROOT2 + 1e-6), 1 / (math.sqrt(3) + 1e-6)
    wanted = ([-a, -a], [-b, 0], [a, a], [-b, -b], [2 * b, 2 * b])
    close(got.advantages, *wanted)
    close(got.returns, *wanted)


def test_grpo_without_the_division():
    """The same scores, less their means 2 and 1."""
    got = estimate("grpo", [[1], [0], [3], [0], [3]], index=["a", "b", "a", "b", "b"], norm_by_std=False)
    close(got.advantages, [-1], [-1], [1], [-1], [2])


def test_grpo_with_a_hole():
    """The 100 is masked: scores 1 + 0 and 1 + 2, so mean 2, half-difference 1."""
    got = estimate(
        "grpo", [[1, 100, 0], [1, 100, 2]], mask=[[1, 0, 1], [1, 0, 1]], index=[0, 0], norm_by_std=False
    )
    close(got.advantages, [-1, 0, -1], [1, 0, 1])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 0),
        ({"singleton": "raw", "epsilon": 0.25}, 4),  # 5 / (1 + 0.25)
        ({"singleton": "raw", "norm_by_std": False}, 5),
    ],
)
def test_grpo_group_of_one(options, wanted):
    got = estimate("grpo", [[2, 3]], index=["a"], **options)
    close(got.advantages, [wanted, wanted])


def test_grpo_non_finite_score():
    """Inf leaves the group: scores 1 and 3 remain, centred -1 and 1; the NaN's sibling is then a group of one."""
    got = estimate(
        "grpo", [[1], [math.inf], [3], [math.nan], [8]], index=["a", "a", "a", "b", "b"], norm_by_std=False
    )
    close(got.advantages, [-1], [0], [1], [0], [0])


def test_grpo_all_masked_row_is_no_member():
    """A row without a valid token is no response: scores 1 and 3, mean 2; with a third score of 0 it would be 4/3."""
    got = estimate("grpo", [[1], [9], [3]], mask=[[1], [0], [1]], index=["a", "a", "a"], norm_by_std=False)
    close(got.advantages, [-1], [0], [1])


# ---- reinforce_pp


def test_reinforce_pp_by_hand():
    """gamma = 0.5. Row 1: r = (1, 2), G_2 = 2, G_1 = 1 + 0.5 * 2 = 2. Row 2: r = (5): G = 5.

    Mean of (2, 2, 5) is 3, variance (1 + 1 + 4) / 2 = 3.
    """
    got = estimate("reinforce_pp", [[1, 2], [5, 77]], mask=[[1, 1], [1, 0]], gamma=0.5)
    s = math.sqrt(3 + 1e-8)
    close(got.returns, [2, 2], [5, 0])
    close(got.advantages, [-1 / s, -1 / s], [2 / s, 0])


def test_reinforce_pp_with_a_hole():
    """The hole is no step: the 2 after it is discounted once, not twice. G as above."""
    got = estimate("reinforce_pp", [[1, 77, 2], [77, 5, 77]], mask=[[1, 0, 1], [0, 1, 0]], gamma=0.5)
    s = math.sqrt(3 + 1e-8)
    close(got.returns, [2, 0, 2], [0, 5, 0])
    close(got.advantages, [-1 / s, 0, -1 / s], [0, 2 / s, 0])


def test_reinforce_pp_non_finite_score():
    """Row 2 is out of the moments, and both its advantages and returns are 0."""
    got = estimate(
        "reinforce_pp", [[1, 2], [3, -math.inf], [5, 77]], mask=[[1, 1], [1, 1], [1, 0]], gamma=0.5
    )
    s = math.sqrt(3 + 1e-8)
    close(got.returns, [2, 2], [0, 0], [5, 0])
    close(got.advantages, [-1 / s, -1 / s], [0, 0], [2 / s, 0])


# ---- remax


def test_remax_by_hand():
    """gamma = 1: G = (3, 2) less the baseline 2.5; row 2: G = 4 less 5."""
    got = estimate(
        "remax",
        [[1, 2], [4, 77]],
        mask=[[1, 1], [1, 0]],
        reward_baselines=torch.tensor([2.5, 5]).double(),
    )
    close(got.returns, [3, 2], [4, 0])
    close(got.advantages, [0.5, -0.5], [-1, 0])


def test_remax_discounted_with_a_hole():
    """gamma = 0.5, steps (1, 2, 4): G_3 = 4, G_2 = 2 + 2 = 4, G_1 = 1 + 2 = 3; less 1. The baseline is not discounted."""
    got = estimate(
        "remax",
        [[1, 77, 2, 4]],
        mask=[[1, 0, 1, 1]],
        reward_baselines=torch.ones(1).double(),
        gamma=0.5,
    )
    close(got.returns, [3, 0, 4, 4])
    close(got.advantages, [2, 0, 3, 3])


def test_remax_non_finite_score():
    """Advantage 0, not minus the baseline."""
    got = estimate(
        "remax", [[math.nan, 1], [1, 1]], reward_baselines=torch.tensor([3.0, 1.0], dtype=torch.float64)
    )
    close(got.returns, [0, 0], [2, 1])
    close(got.advantages, [0, 0], [1, 0])


# ---- losses

# Two rows of losses 1, 2, 6 and 5, with a hole and a row of nothing:
#   1 2 | 6        3 valid, sum 9, mean 3
#   5 . | .        1 valid, sum 5, mean 5
#   . . | .        none
MASK = [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
AGGREGATED = {
    "token-mean": 14 / 4,
    "token-sum": 14,
    "seq-mean-token-sum": (9 + 5) / 2,
    "seq-mean-token-sum-norm": (9 + 5) / 2 / 3,  # three columns
    "seq-mean-token-mean": (3 + 5) / 2,
}


@pytest.mark.parametrize(("mode", "wanted"), AGGREGATED.items())
def test_the_five_aggregations(mode, wanted):
    """mse with returns 0: L = v^2 / 2, so v = sqrt(2 L)."""
    vpreds = matrix([2, 4, 12], [10, math.nan, 8], [3, 3, math.inf]).sqrt()
    zeros = torch.zeros_like(vpreds)
    loss, _ = rl_estimators.value_loss(
        "mse",
        vpreds=vpreds,
        values=zeros,
        returns=zeros,
        response_mask=matrix(*MASK),
        loss_agg_mode=mode,
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


GLOBAL = {"dp_size": 2, "batch_num_tokens": 7, "global_batch_size": 4, "loss_scale_factor": 10}
AGGREGATED_GLOBALLY = {
    "token-mean": 14 / 7 * 2,
    "token-sum": 14 * 2,
    "seq-mean-token-sum": (9 + 5) / 4 * 2,
    "seq-mean-token-sum-norm": (9 + 5) / 4 * 2 / 10,
    "seq-mean-token-mean": (3 + 5) / 4 * 2,
}


@pytest.mark.parametrize(("mode", "wanted"), AGGREGATED_GLOBALLY.items())
def test_the_five_aggregations_of_a_micro_batch(mode, wanted):
    """The same losses as part of a global batch of 7 tokens and 4 responses on 2 ranks."""
    vpreds = matrix([2, 4, 12], [10, math.nan, 8], [3, 3, math.inf]).sqrt()
    zeros = torch.zeros_like(vpreds)
    loss, _ = rl_estimators.value_loss(
        "mse",
        vpreds=vpreds,
        values=zeros,
        returns=zeros,
        response_mask=matrix(*MASK),
        loss_agg_mode=mode,
        global_batch_info=GLOBAL,
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


def value_loss_and_slope(name, vpreds, values, returns, **options):
    v = matrix(vpreds).requires_grad_()
    loss, _ = rl_estimators.value_loss(
        name,
        vpreds=v,
        values=matrix(values),
        returns=matrix(returns),
        response_mask=torch.ones_like(v),
        loss_agg_mode="token-sum",
        **options,
    )
    loss.backward()
    return loss.item(), v.grad


def test_mse_by_hand():
    """v - R = (2, -3): 1/2 (4 + 9) = 6.5, slopes (2, -3)."""
    loss, slope = value_loss_and_slope("mse", [3, -2], [0, 0], [1, 1])
    assert loss == pytest.approx(6.5, rel=1e-12)
    close(slope, [2, -3])


def test_clipped_by_hand():
    """V = 0, c = 0.5. Per token v, R: clip(v); squares; loss; slope.

    0.25, 1: inside, 0.25; both 0.5625;                 0.28125, -0.75
    2, 0:    0.5;  4 against 0.25, the first larger:    2,        2
    2, 2:    0.5;  0 against 2.25, the clipped larger:  1.125,    0
    -2, 1:   -0.5; 9 against 2.25, the first larger:    4.5,     -3
    -2, -2:  -0.5; 0 against 2.25, the clipped larger:  1.125,    0
    """
    loss, slope = value_loss_and_slope("clipped", [0.25, 2, 2, -2, -2], [0] * 5, [1, 0, 2, 1, -2])
    assert loss == pytest.approx(0.28125 + 2 + 1.125 + 4.5 + 1.125, rel=1e-12)
    close(slope, [-0.75, 2, 0, -3, 0])


def test_clipped_takes_its_range():
    """c = 1: v = 2 becomes 1; (1 - 3)^2 = 4 against (2 - 3)^2 = 1: 1/2 * 4 = 2."""
    loss, _ = value_loss_and_slope("clipped", [2], [0], [3], cliprange_value=1.0)
    assert loss == pytest.approx(2, rel=1e-12)


def policy_loss_and_slope(ratios, advantages, mask=None, **options):
    new = matrix(ratios).log().requires_grad_()
    loss, _ = rl_estimators.policy_loss(
        "ppo_clip",
        old_log_prob=torch.zeros_like(new),
        log_prob=new,
        advantages=matrix(advantages),
        response_mask=torch.ones_like(new) if mask is None else matrix(mask),
        **{"loss_agg_mode": "token-sum", **options},
    )
    loss.backward()
    return loss.item(), new.grad


def test_ppo_clip_by_hand():
    """Ratio w, advantage A: -A w against -A clip(w, 0.8, 1.2); slope by log_prob is -A w or 0.

    1.1,  2: inside:                                   -2.2, slope -2.2
    1.5,  2: -3 against -2.4, the clipped larger:      -2.4, slope 0
    0.5,  2: -1 against -1.6, the first larger:        -1,   slope -1
    1.5, -2: 3 against 2.4, the first larger:           3,   slope 3
    0.5, -2: 1 against 1.6, the clipped larger:         1.6, slope 0
    """
    loss, slope = policy_loss_and_slope([1.1, 1.5, 0.5, 1.5, 0.5], [2, 2, 2, -2, -2])
    assert loss == pytest.approx(-2.2 - 2.4 - 1 + 3 + 1.6, rel=1e-12)
    close(slope, [-2.2, 0, -1, 3, 0])


def test_ppo_clip_with_different_ends():
    """clip(w, 0.9, 1.5), A = 1: w = 1.4 stays (-1.4); w = 2 gives -1.5; A = -1, w = 0.85 gives 0.9."""
    loss, slope = policy_loss_and_slope([1.4, 2, 0.85], [1, 1, -1], clip_ratio_low=0.1, clip_ratio_high=0.5)
    assert loss == pytest.approx(-1.4 - 1.5 + 0.9, rel=1e-12)
    close(slope, [-1.4, 0, 0])


def test_ppo_clip_dual():
    """c = 3, A = -2: w = 5 would cost 10, held at 6 with slope 0; w = 2 costs 4. A = 2, w = 5: -2.4 as ever."""
    loss, slope = policy_loss_and_slope([5, 2, 5], [-2, -2, 2], clip_ratio_c=3.0)
    assert loss == pytest.approx(6 + 4 - 2.4, rel=1e-12)
    close(slope, [0, 4, 0])


def test_ppo_clip_is_not_dual_by_default():
    """clip_ratio_c is None: w = 5, A = -2 costs 10."""
    loss, slope = policy_loss_and_slope([5], [-2])
    assert loss == pytest.approx(10, rel=1e-12)
    close(slope, [10])


def test_ppo_clip_log_ratio_is_clamped():
    """log w = 30 counts as 20: A = -1 costs e^20, and there is no slope beyond the clamp."""
    loss, slope = policy_loss_and_slope([math.exp(30)], [-1])
    assert loss == pytest.approx(math.exp(20), rel=1e-12)
    close(slope, [0])


def test_ppo_clip_with_a_hole():
    """Losses -1.1 and -2.2 around a masked NaN: mean -1.65; slopes halved by the mean, exactly 0 in the hole."""
    loss, slope = policy_loss_and_slope(
        [1.1, math.nan, 1.1], [1, math.nan, 2], mask=[1, 0, 1], loss_agg_mode="token-mean"
    )
    assert loss == pytest.approx(-1.65, rel=1e-12)
    close(slope, [-0.55, 0, -1.1])
    assert slope[0, 1].item() == 0
