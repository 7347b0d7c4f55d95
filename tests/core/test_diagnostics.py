"""The numbers of a batch, by hand and against numpy in float64."""

import math

import numpy as np
import pytest
import torch

from rl_estimators import collect_metrics, diagnose, estimate, list_adv_est
from rl_estimators.diagnostics import DIAGNOSTICS, loggable, measure, tokens
from rl_estimators.errors import InputError

NAN, INF = float("nan"), float("inf")


def numbers(**inputs):
    given = {
        name: torch.tensor(value) if isinstance(value, list) and name != "index" else value
        for name, value in inputs.items()
    }
    return loggable(diagnose(**given))


# Two prompts of two responses; the second response has one valid token, and a NaN beside it.
BATCH = {
    "response_mask": [[1, 1], [1, 0], [1, 1], [1, 1]],
    "advantages": [[0.5, 1.5], [-2.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "token_level_rewards": [[0.0, 1.0], [0.0, NAN], [0.0, 0.0], [0.0, 0.0]],
    "index": ["p", "p", "q", "q"],
}


class TestByHand:
    def test_advantages(self):
        """Seven valid tokens: 0.5, 1.5, -2 and four zeros; mean 0, sum of squares 6.5."""
        found = numbers(**BATCH)
        assert found["zero_advantage_token_share"] == pytest.approx(4 / 7)
        assert found["zero_advantage_prompt_share"] == 0.5
        assert found["advantage_mean"] == pytest.approx(0, abs=1e-12)
        assert found["advantage_std"] == pytest.approx(math.sqrt(6.5 / 6))
        assert (found["advantage_min"], found["advantage_max"]) == (-2, 1.5)

    def test_rewards(self):
        """Scores 1, 0 and 0, 0. Within: deviations of 1/2 twice, over 1 + 1 degrees; between: means 1/2 and 0."""
        found = numbers(**BATCH)
        assert found["reward_mean"] == 0.25
        assert found["reward_std"] == pytest.approx(0.5)
        assert found["reward_std_within_groups"] == pytest.approx(0.5)
        assert found["reward_std_between_groups"] == pytest.approx(math.sqrt(0.125))
        assert found["all_wrong_group_share"] == 0.5
        assert found["all_right_group_share"] == 0
        assert found["excluded_responses"] == 0

    def test_explained_variance(self):
        """R = 0, 2, 4 and V = 0, 2, 1: Var(R) = 8/3, errors 0, 0, 3 with variance 2."""
        found = numbers(
            response_mask=[[1, 1, 0], [1, 0, 0]],
            returns=[[0.0, 2.0, 9.0], [4.0, 9.0, 9.0]],
            values=[[0.0, 2.0, NAN], [1.0, NAN, 9.0]],
        )
        assert found == {"explained_variance_before": pytest.approx(1 - 2 / (8 / 3))}

    def test_ratios(self):
        """Ratios 2 and 1/2: mean 5/4, deviation 3/4, ESS (5/2)^2 / (2 (4 + 1/4)), k3 (1 - ln 2 - 1/2 + ln 2) / 2."""
        found = numbers(
            response_mask=[[1, 1, 0]],
            log_prob=[[math.log(2), 0.0, NAN]],
            old_log_probs=[[0.0, math.log(2), NAN]],
            ref_log_prob=[[-1.0, 0.0, NAN]],
        )
        expected = {
            "ratio_mean": 1.25, "ratio_std": 0.75, "ratio_min": 0.5, "ratio_max": 2, "policy_kl": 0.25,
            "effective_sample_size": 6.25 / 8.5, "reference_kl": (1 + math.log(2)) / 2,
        }  # fmt: skip
        assert found == {name: pytest.approx(number, rel=1e-6) for name, number in expected.items()}

    def test_reference_kl_needs_no_policy_in_training(self):
        found = numbers(
            response_mask=[[1, 1, 0]], old_log_probs=[[-1.0, -2.0, NAN]], ref_log_prob=[[-2.0, -1.5, NAN]]
        )
        assert found == {"reference_kl": pytest.approx(0.25)}

    def test_value_clip(self):
        """Reach 0.5. Moved by 2 away from R = 0: not clipped. Moved by 1 towards R = 3: the clip is in force."""
        found = numbers(
            response_mask=[[1, 1, 1, 0]],
            returns=[[0.0, 3.0, 1.0, 0.0]],
            values=[[0.0, 0.0, 1.0, 0.0]],
            vpreds=[[2.0, 1.0, 1.0, 5.0]],
            cliprange_value=0.5,
        )
        assert found["value_clip_share"] == pytest.approx(1 / 3)
        # R = 0, 3, 1 has variance 14/9; before: errors 0, 3, 0, variance 2; after: -2, 2, 0, variance 8/3
        assert found["explained_variance_before"] == pytest.approx(1 - 2 / (14 / 9))
        assert found["explained_variance_after"] == pytest.approx(1 - (8 / 3) / (14 / 9))

    def test_truncated(self):
        """Of three responses one was cut off; it lost all its tokens to the mask. The last row is padding."""
        mask = [[1], [1], [0], [0]]
        assert numbers(response_mask=mask, truncated=[0, 0, 1, 0])[
            "truncated_response_share"
        ] == pytest.approx(1 / 3)


def reference(mask, advantages, scores, index):
    """The same in numpy and float64, one response after the other."""
    mask = mask != 0
    valid = advantages[mask]
    rows = mask.any(-1) & np.isfinite(scores)
    groups = {name: scores[rows & (index == name)] for name in dict.fromkeys(index)}
    groups = {name: s for name, s in groups.items() if len(s)}
    several = [s for s in groups.values() if len(s) > 1]
    moved = {name: advantages[index == name][mask[index == name]] for name in dict.fromkeys(index)}
    moved = [a for a in moved.values() if len(a)]
    return {
        "zero_advantage_token_share": (valid == 0).mean(),
        "zero_advantage_prompt_share": np.mean([not a.any() for a in moved]),
        "advantage_mean": valid.mean(),
        "advantage_std": valid.std(ddof=1),
        "advantage_min": valid.min(),
        "advantage_max": valid.max(),
        "reward_mean": scores[rows].mean(),
        "reward_std": scores[rows].std(ddof=1),
        "reward_std_within_groups": np.sqrt(
            sum(((s - s.mean()) ** 2).sum() for s in several) / sum(len(s) - 1 for s in several)
        ),
        "reward_std_between_groups": np.std([s.mean() for s in groups.values()], ddof=1),
        "all_right_group_share": np.mean([(s >= 1).all() for s in several]),
        "all_wrong_group_share": np.mean([(s <= 0).all() for s in several]),
        "excluded_responses": (mask.any(-1) & ~np.isfinite(scores)).sum(),
    }


def random_batch(seed, dtype, rubbish, rows=24, length=17):
    """Holes, a row of padding, a response with a NaN score, groups of unequal size and a singleton."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=g) < 0.7
    mask[5] = False
    index = np.array([f"g{min(row // 5, 4)}" for row in range(rows)])
    index[-1] = "alone"
    rewards = torch.where(torch.rand(rows, length, generator=g) < 0.1, 1.0, 0.0)
    rewards[3, int(mask[3].int().argmax())] = NAN
    rewards[:5] = torch.where(rewards[:5].isnan(), rewards[:5], 0.0)
    advantages = torch.randn(rows, length, generator=g) * (torch.rand(rows, 1, generator=g) < 0.6)
    advantages[10:15] = 0
    rubbish = torch.tensor(NAN)
    return (
        mask,
        torch.where(mask, advantages, rubbish).to(dtype),
        torch.where(mask, rewards, rubbish).to(dtype),
        index,
    )


@pytest.mark.parametrize("mask_dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_counted_in_full_under_a_mask_of_half_precision(mask_dtype):
    """2 of 4097 advantages are 0; 4097 is a number of neither type."""
    advantages = torch.tensor([1.0, -1.0]).repeat(2049)[None, :4097].clone()
    advantages[0, :2] = 0
    found = numbers(advantages=advantages, response_mask=torch.ones(1, 4097, dtype=mask_dtype))
    assert found["zero_advantage_token_share"] == pytest.approx(2 / 4097, rel=1e-9)


@pytest.mark.parametrize(("seed", "rubbish"), [(0, NAN), (1, 7.0), (2, INF)])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_against_numpy(seed, rubbish, mask_dtype, dtype, monkeypatch):
    monkeypatch.setattr(tokens, "block_elements", lambda x: 40)  # two rows a block
    mask, advantages, rewards, index = random_batch(seed, dtype, rubbish)
    found = loggable(
        diagnose(
            response_mask=mask.to(mask_dtype),
            advantages=advantages,
            token_level_rewards=rewards,
            index=index.tolist(),
        )
    )
    scores = np.where(mask, rewards.double().numpy(), 0).sum(-1)
    expected = reference(mask.numpy(), advantages.double().numpy(), scores, index)
    assert found == {name: pytest.approx(number, rel=2e-6, abs=1e-7) for name, number in expected.items()}


class TestOneReading:
    """The reading at the speed of memory, and what it hands over to the slower, exact one."""

    @pytest.fixture
    def readings(self, monkeypatch):
        calls = []
        exact = tokens._selected
        monkeypatch.setattr(tokens, "_selected", lambda *args: calls.append("exact") or exact(*args))
        return calls

    def of(self, advantages, mask, **more):
        found = measure(
            {"response_mask": mask, "advantages": advantages, **more}, clean=more.pop("clean", False)
        )
        return loggable(found)

    def test_the_fast_one_is_enough(self, readings):
        """Numbers on both sides of 0, as after any baseline."""
        mask = (torch.arange(50) < torch.randint(1, 51, (8, 1))).long()
        advantages = torch.randn(8, 50) * mask
        found = measure({"response_mask": mask, "advantages": advantages}, clean=True)
        valid = advantages[mask.bool()].double()
        assert readings == []
        assert float(found["advantage_std"]) == pytest.approx(float(valid.std()), rel=1e-6)
        assert float(found["advantage_min"]) == float(valid.min())

    @pytest.mark.parametrize("sign", [1, -1])
    def test_extremes_on_one_side_of_zero(self, sign, readings):
        """The padding's zeros are no advantages."""
        found = self.of(
            sign * torch.tensor([[2.0, 3.0, 0.0], [4.0, 0.0, 0.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
        )
        assert readings == ["exact"]
        assert sorted([abs(found["advantage_min"]), abs(found["advantage_max"])]) == [2, 4]

    def test_a_spread_far_below_the_mean(self, readings):
        """1000 +- 1/64 in fp32: squares of a million, with seven digits each, do not hold a variance of 1/4096."""
        advantages = 1000 + torch.tensor([[1.0, -1.0] * 64]) / 64
        found = self.of(advantages, torch.ones_like(advantages))
        assert readings == ["exact"]
        assert found["advantage_std"] == pytest.approx(math.sqrt(128 / 127) / 64, rel=1e-6)

    def test_a_spread_far_below_the_mean_beside_a_zero(self, readings):
        """Of 100 000 advantages of 0.7 one is 0: a deviation of 0.7 / 316, that fp32 sums miss by a tenth."""
        advantages = torch.full((1, 100_000), 0.7)
        advantages[0, 5] = 0
        found = self.of(advantages, torch.ones_like(advantages))
        assert readings == ["exact"]
        assert found["advantage_std"] == pytest.approx(float(advantages[0, 0]) / 100_000**0.5, rel=1e-6)

    def test_squares_that_fp32_cannot_hold(self):
        found = self.of(torch.tensor([[1e25, -1e25]]), torch.ones(1, 2))
        assert found["advantage_std"] == pytest.approx(2**0.5 * 1e25, rel=1e-6)

    def test_equal_advantages_have_no_spread(self):
        found = self.of(torch.full((3, 7), 0.7), torch.ones(3, 7))
        assert found["advantage_std"] == 0

    def test_not_a_number_on_a_valid_token(self):
        """What it reaches is left out of the log; the rest stays."""
        found = self.of(torch.tensor([[NAN, 0.0], [0.0, 0.0]]), torch.ones(2, 2))
        assert found == {"zero_advantage_token_share": 0.75}


class TestWhatIsNotDefined:
    def test_no_rows(self):
        nothing = torch.zeros(0, 5)
        found = diagnose(
            response_mask=nothing, advantages=nothing, returns=nothing, values=nothing, token_level_rewards=nothing,
            index=[], truncated=torch.zeros(0), log_prob=nothing, old_log_probs=nothing, vpreds=nothing,
            cliprange_value=0.5,
        )  # fmt: skip
        assert loggable(found) == {"excluded_responses": 0}

    def test_no_tokens(self):
        """Padding rows only, and rows of no length."""
        for shape in ((3, 4), (3, 0)):
            nothing = torch.zeros(shape)
            found = diagnose(
                response_mask=nothing, advantages=nothing, returns=nothing, values=nothing,
                token_level_rewards=nothing, index=[0, 0, 1], log_prob=nothing, old_log_probs=nothing,
                ref_log_prob=nothing, vpreds=nothing, cliprange_value=0.5,
            )  # fmt: skip
            assert loggable(found) == {"excluded_responses": 0}

    def test_a_single_response(self):
        found = numbers(response_mask=[[1]], advantages=[[2.0]], token_level_rewards=[[3.0]], index=["p"])
        assert found == {
            "zero_advantage_token_share": 0, "zero_advantage_prompt_share": 0, "advantage_mean": 2,
            "advantage_min": 2, "advantage_max": 2, "reward_mean": 3, "excluded_responses": 0,
        }  # fmt: skip

    def test_groups_of_one(self):
        """Nothing to compare within a group: neither a share of groups nor a spread in or between them."""
        found = numbers(response_mask=[[1], [1]], token_level_rewards=[[1.0], [0.0]], index=[1, 2])
        assert found == {"reward_mean": 0.5, "reward_std": pytest.approx(0.5**0.5), "excluded_responses": 0}

    def test_prompts_that_nobody_named(self):
        found = numbers(
            response_mask=[[1], [1]], advantages=[[1.0], [0.0]], token_level_rewards=[[1.0], [0.0]]
        )
        assert not any("group" in name or "prompt" in name for name in found)

    def test_every_score_is_infinite(self):
        found = numbers(response_mask=[[1], [1]], token_level_rewards=[[INF], [-INF]], index=[1, 1])
        assert found == {"excluded_responses": 2}

    def test_scores_beyond_fp32(self):
        """As an estimator leaves it out: fp32 cannot hold the sum."""
        found = numbers(response_mask=[[1, 1], [1, 1]], token_level_rewards=[[3e38, 3e38], [1.0, 0.0]])
        assert found == {"reward_mean": 1, "excluded_responses": 1}

    def test_equal_targets(self):
        """Rounding is no variance to explain: 0.1 has none in fp32."""
        found = numbers(
            response_mask=[[1, 1, 1]],
            returns=[[0.1, 0.1, 0.1]],
            values=[[0.0, 1.0, 2.0]],
            vpreds=[[0.1, 0.2, 0.3]],
        )
        assert found == {}

    def test_a_perfect_critic_is_defined(self):
        found = numbers(
            response_mask=[[1, 1]], returns=[[1.0, 3.0]], values=[[1.0, 3.0]], vpreds=[[0.0, 2.0]]
        )
        assert found == {"explained_variance_before": 1, "explained_variance_after": 1}

    def test_equal_scores_have_no_spread(self):
        """Three times 0.7 in fp32, whose mean is not 0.7."""
        found = numbers(response_mask=[[1]] * 3, token_level_rewards=[[0.7]] * 3, index=[0, 0, 0])
        assert found["reward_std"] == found["reward_std_within_groups"] == 0


def test_an_excluded_response_is_not_perfectly_foreseen():
    """Its targets are its own old values. By the others alone: R = 0, 4 and errors 0, 3."""
    mask, values = torch.ones(3, 1), torch.tensor([[0.0], [1.0], [8.0]])
    rewards = torch.tensor([[0.0], [4.0], [NAN]])
    returns = estimate("mc", token_level_rewards=rewards, response_mask=mask, values=values).returns
    assert returns.flatten().tolist() == [0, 4, 8]
    found = diagnose(response_mask=mask, returns=returns, values=values, token_level_rewards=rewards)
    assert float(found["explained_variance_before"]) == pytest.approx(1 - 2.25 / 4)


def test_right_and_wrong_are_full_marks_and_none():
    """Groups: 0/1 both ways, -1/1 both ways, partial marks, and a sum of 0.9 and 0.1 that fp32 rounds."""
    scores = [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [0.5, 1.0], [0.9 + 0.1 - 1e-7, 1.0]]
    flat = [[score] for group in scores for score in group]
    index = [number // 2 for number in range(len(flat))]
    found = numbers(response_mask=[[1]] * len(flat), token_level_rewards=flat, index=index)
    assert found["all_right_group_share"] == pytest.approx(3 / 6)
    assert found["all_wrong_group_share"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("name", list_adv_est())
def test_estimators_leave_what_a_clean_reading_relies_on(name):
    """Advantages and returns are 0 where masked: both readings agree."""
    g = torch.Generator().manual_seed(1)
    mask = (torch.rand(8, 6, generator=g) < 0.7).long()
    mask[:, 0] = 1
    batch = {
        "token_level_rewards": torch.rand(8, 6, generator=g), "response_mask": mask, "index": [0, 0, 0, 0, 1, 1, 1, 1],
        "values": torch.randn(8, 6, generator=g), "reward_baselines": torch.zeros(8),
        "reward_components": torch.rand(8, 2, generator=g),
    }  # fmt: skip
    result = estimate(name, **batch)
    given = {**result._asdict(), "response_mask": mask, "values": batch["values"], "index": batch["index"]}
    clean, masked = loggable(measure(given, clean=True)), loggable(measure(given))
    assert clean == {number: pytest.approx(value, rel=1e-5, abs=1e-6) for number, value in masked.items()}


class TestWhatIsAskedFor:
    @pytest.mark.parametrize(
        ("given", "other"),
        [
            ("returns", "values"),
            ("values", "returns"),
            ("log_prob", "old_log_probs"),
            ("ref_log_prob", "old_log_probs"),
        ],
    )
    def test_one_without_the_other(self, given, other):
        one = torch.ones(1, 1)
        with pytest.raises(
            InputError, match=f"diagnose: {given} is given without {other}; give both, or neither"
        ):
            diagnose(response_mask=one, **{given: one})

    def test_a_clip_range_without_values_in_training(self):
        with pytest.raises(InputError, match="cliprange_value is given without vpreds"):
            diagnose(response_mask=torch.ones(1, 1), cliprange_value=0.5)

    def test_shapes_are_checked(self):
        with pytest.raises(InputError, match=r"diagnose: advantages has T=2, but response_mask has T=1"):
            diagnose(response_mask=torch.ones(1, 1), advantages=torch.ones(1, 2))

    def test_nothing_is_counted_on_the_side(self):
        """An estimator's own count of excluded responses must not double."""
        with collect_metrics() as counts:
            diagnose(response_mask=torch.ones(1, 1), token_level_rewards=torch.tensor([[NAN]]))
        assert counts == {}

    def test_no_gradient_and_no_change(self):
        mask, x = torch.tensor([[1, 0]]), torch.tensor([[1.0, 2.0]], requires_grad=True)
        inputs = {"advantages": x, "returns": x, "values": x, "log_prob": x, "old_log_probs": x, "vpreds": x}
        before = x.detach().clone()
        found = diagnose(response_mask=mask, **inputs)
        assert not any(number.requires_grad for number in found.values())
        assert all(number.ndim == 0 for number in found.values())
        assert torch.equal(x.detach(), before)


def test_nothing_is_read_back_from_a_device():
    """On the device "meta", which has shapes and no numbers, whoever asks for one raises."""
    one = torch.empty(4, 3, device="meta")
    flags = torch.empty(4, device="meta", dtype=torch.bool)
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(one.sum() > 0)
    found = diagnose(
        response_mask=one, advantages=one, returns=one, values=one, token_level_rewards=one, index=[0, 0, 1, 1],
        truncated=flags, log_prob=one, old_log_probs=one, ref_log_prob=one, vpreds=one, cliprange_value=0.5,
    )  # fmt: skip
    assert {(number.device.type, number.ndim) for number in found.values()} == {("meta", 0)}


def test_each_number_is_in_the_table_and_each_entry_is_computed():
    one = torch.rand(4, 3)
    found = diagnose(
        response_mask=torch.ones(4, 3), advantages=one, returns=one, values=one, token_level_rewards=one,
        index=[0, 0, 1, 1], truncated=torch.zeros(4), log_prob=one, old_log_probs=one, ref_log_prob=one, vpreds=one,
        cliprange_value=0.5,
    )  # fmt: skip
    assert found.keys() == DIAGNOSTICS.keys()
    for entry in DIAGNOSTICS.values():
        assert all(len(text) > 5 for text in (entry.what, entry.bad, entry.remedy, entry.needs))


def test_extremes_are_named_so():
    """verl joins the numbers of several batches by their names."""
    for name, entry in DIAGNOSTICS.items():
        assert (entry.joined == "min") == ("min" in name)
        assert (entry.joined == "max") == ("max" in name)


def test_nothing_to_log():
    assert loggable({}) == {}
