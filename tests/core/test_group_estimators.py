"""The estimators that compare the answers to one prompt: against a reference, by hand, by property, against verl."""

import dataclasses
import importlib.metadata
import itertools
import math

import numpy as np
import pytest
import torch
from reference import cases, groups
from reference.tensors import arrays_of, as_tensor, epsilon_of, tensors_of

import rl_estimators
from rl_estimators.errors import InputError
from rl_estimators.metrics import collect_metrics

NAMES = [*groups.ESTIMATORS]
INPUTS = ("token_level_rewards", "response_mask", "index")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

each = pytest.mark.parametrize("name", NAMES)


def uids(*names):
    return np.array(names, dtype=object)


# ---- against the reference

VARIANTS = {
    "rloo": [{}, {"singleton": "raw"}],
    "reinforce_pp_baseline": [{}, {"norm_level": "sequence"}],
    "opo": [{}],
    "gpg": [{}, {"f_norm": 0.25}, {"alpha": 1.5}],
    "grpo_passk": [{}, {"norm_by_std": False}, {"epsilon": 0.5}],
    "maxrl": [{}],
    "gdpo": [{}, {"norm_level": "token", "weights": [1.0, 0.5, 2.0]}, {"norm_by_std": False, "epsilon": 0.0}],
}


def case_for(name, case):
    """MaxRL wants no negative scores."""
    if name == "maxrl":
        return dataclasses.replace(case, token_level_rewards=np.abs(case.token_level_rewards))
    return case


def both_inputs(name, case, dtype):
    """What the package gets, and the same numbers for the reference."""
    case = case_for(name, case)
    ours, theirs = tensors_of(case, INPUTS, dtype), arrays_of(case, INPUTS, dtype)
    if name == "gdpo":
        ours["reward_components"] = as_tensor(groups.components_of(case), dtype)
        theirs["reward_components"] = ours["reward_components"].double().numpy()
    return ours, theirs


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("name", "options", "case"),
    [
        pytest.param(name, options, case, id=f"{name}-{options or 'defaults'}-{case.name}")
        for name in NAMES
        for options, case in itertools.product(VARIANTS[name], (*cases.SHORT, *cases.LONG_CASES))
    ],
)
def test_against_the_reference(name, options, case, dtype):
    ours, theirs = both_inputs(name, case, dtype)
    wanted = groups.ESTIMATORS[name](**theirs, **options).advantages
    bound = groups.bound(name, theirs, options, epsilon_of(dtype))
    advantages, returns = rl_estimators.estimate(name, **ours, **options)
    assert torch.equal(advantages, returns)
    assert advantages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert advantages.isfinite().all()
    assert (advantages.numpy()[~case.response_mask] == 0).all()
    off = np.abs(advantages.double().numpy() - wanted)
    assert (off <= bound).all(), f"off by {off.max()}\n{bound}\n{advantages}\n{wanted}"
    for mask_dtype in (torch.int64, torch.float32):
        again = {**ours, "response_mask": ours["response_mask"].to(mask_dtype)}
        assert torch.equal(rl_estimators.estimate(name, **again, **options).advantages, advantages)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "case", ["tie_0.7", "tie_1000.1", "all_zero", "singletons", "one_row", "one_valid_token"]
)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES),
        ("reinforce_pp_baseline", {"norm_level": "sequence"}),
        ("gdpo", {"norm_level": "token"}),
    ],
)
def test_equal_scores_are_worth_exactly_nothing(name, case, options, dtype):
    """No tolerance: the definition says 0."""
    ours, _ = both_inputs(name, cases.BY_NAME[case], dtype)
    if name == "gdpo":
        ours["reward_components"] = torch.full((len(ours["index"]), 2), 1000.1).to(dtype)
    assert (rl_estimators.estimate(name, **ours, **options).advantages == 0).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "gdpo"])
def test_a_tie_beside_a_group_that_differs_is_exactly_nothing(name):
    """Rows 0-2 tie at 0.7; the batch's mean over tokens alone may move them."""
    ours, _ = both_inputs(name, cases.BY_NAME["tie_in_one_group"], torch.float32)
    options = {"norm_level": "sequence"} if name == "reinforce_pp_baseline" else {}
    advantages = rl_estimators.estimate(name, **ours, **options).advantages
    assert (advantages[:3] == 0).all()
    assert (advantages[3:] != 0).any() or name == "grpo_passk"  # there two are best


# ---- by hand


def run(name, scores, index, mask=None, **kwargs):
    """One token each, or as many as the mask says, with the score on the first."""
    mask = torch.ones(len(scores), 1) if mask is None else torch.tensor(mask)
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    rewards[:, 0] = torch.tensor(scores, dtype=torch.float64)
    return rl_estimators.estimate(
        name, token_level_rewards=rewards, response_mask=mask, index=index, **kwargs
    ).advantages


def close(actual, *wanted):
    wanted = torch.tensor(wanted, dtype=torch.float64)
    wanted = wanted[:, None] if wanted.ndim == 1 else wanted
    torch.testing.assert_close(actual, wanted.expand_as(actual), rtol=1e-12, atol=1e-12)


def test_rloo_by_hand():
    """Group a scores 1, 2, 6: 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2. Group b is alone."""
    got = run("rloo", [1, 9, 2, 6], ["a", "b", "a", "a"])
    close(got, -3, 0, -1.5, 4.5)
    close(run("rloo", [1, 9, 2, 6], ["a", "b", "a", "a"], singleton="raw"), -3, 9, -1.5, 4.5)


def test_rloo_with_a_hole():
    """The 100 is masked: scores 1 and 3."""
    advantages, _ = rl_estimators.estimate(
        "rloo",
        token_level_rewards=torch.tensor([[1.0, 100, 0], [1, math.nan, 2]]),
        response_mask=torch.tensor([[1, 0, 1], [1, 0, 1]]),
        index=[0, 0],
    )
    assert advantages.tolist() == [[-2, 0, -2], [2, 0, 2]]


def test_reinforce_pp_baseline_over_tokens_by_hand():
    """Group a: 0 and 2, centred -1 and 1; group b: 3 and 3, centred 0. Lengths 3, 1, 1, 1.

    Over 6 tokens: mean (-3 + 1) / 6 = -1/3; deviations -2/3 (3 times), 4/3, 1/3, 1/3:
    variance (12 + 16 + 1 + 1) / 9 / 5 = 2/3.
    """
    mask = [[1.0, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    got = run("reinforce_pp_baseline", [0, 2, 3, 3], ["a", "a", "b", "b"], mask)
    s = 3 * math.sqrt(2 / 3 + 1e-8)
    close(got, [-2 / s] * 3, [4 / s, 0, 0], [1 / s, 0, 0], [1 / s, 0, 0])


def test_reinforce_pp_baseline_over_sequences_by_hand():
    """The same: -1, 1, 0, 0 have mean 0 and variance 2/3, whatever their lengths."""
    mask = [[1.0, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    got = run("reinforce_pp_baseline", [0, 2, 3, 3], ["a", "a", "b", "b"], mask, norm_level="sequence")
    s = math.sqrt(2 / 3 + 1e-8)
    close(got, [-1 / s] * 3, [1 / s, 0, 0], [0, 0, 0], [0, 0, 0])
    assert (got[2:] == 0).all()


def test_opo_by_hand():
    """Scores 0 and 4 with 3 tokens and 1: baseline (3 * 0 + 1 * 4) / 4 = 1."""
    close(run("opo", [0, 4], ["a", "a"], [[1.0, 1, 1], [1, 0, 0]]), [-1, -1, -1], [3, 0, 0])


def test_opo_has_the_least_variance():
    """Tokens' gradients orthogonal and of norm 1: the second moment is sum_b l_b (s_b - x)^2, a parabola in x."""
    scores, mask = [0.25, 4.0, -1.0], [[1.0, 1, 1], [1, 0, 0], [1, 1, 0]]
    lengths = np.array([3, 1, 2])
    got = run("opo", scores, ["a"] * 3, mask)[:, 0].numpy()

    def moment(shift):
        return np.sum(lengths * (got + shift) ** 2)

    assert moment(0) < min(moment(-1e-3), moment(1e-3))


def test_gpg_by_hand():
    """Group a: 0, 1, 2, centred -1, 0, 1, all alive; b: 1, 1 and c: 5 are dead: alpha = 6 / 3 = 2."""
    index = ["a", "b", "a", "b", "a", "c"]
    close(run("gpg", [0, 1, 1, 1, 2, 5], index), -2, 0, 0, 0, 2, 0)
    close(run("gpg", [0, 1, 1, 1, 2, 5], index, f_norm=4), -0.5, 0, 0, 0, 0.5, 0)
    close(run("gpg", [0, 1, 1, 1, 2, 5], index, alpha=1), -1, 0, 0, 0, 1, 0)


def test_gpg_counts_neither_padding_nor_bad_scores():
    """Two alive of four that count: alpha 2. The NaN, and the row without tokens, are not in B."""
    mask = [[1.0], [1], [1], [1], [1], [0]]
    got = run("gpg", [0, 1, 3, 3, math.nan, 7], ["a", "a", "b", "b", "b", "a"], mask)
    close(got, -1, 1, 0, 0, 0, 0)


def test_grpo_passk_by_hand():
    """Group a: 1, 4, 2: best 4, second 2, mean 7/3, variance (16 + 25 + 1) / 9 / 2 = 7/3. b ties at the top."""
    index = ["a", "b", "a", "b", "a", "b", "c"]
    scores = [1, 5, 4, 5, 2, 0, 9]
    close(run("grpo_passk", scores, index, norm_by_std=False), 0, 0, 2, 0, 0, 0, 0)
    close(run("grpo_passk", scores, index), 0, 0, 2 / (math.sqrt(7 / 3) + 1e-6), 0, 0, 0, 0)


def test_maxrl_by_hand():
    """1 of 4 solved: mean 1/4, so 3 and -1. None solved: 0. All solved: 0. Scores 1 and 3: mean 2."""
    index = [*"aaaa", *"bb", *"cc", *"dd"]
    close(run("maxrl", [0, 0, 1, 0, 0, 0, 1, 1, 1, 3], index), -1, -1, 3, -1, 0, 0, 0, 0, -0.5, 0.5)


def test_gdpo_by_hand():
    """Two prompts, two answers, two rewards.

    a: (0, 10) and (1, 30): centred (-1/2, -10), (1/2, 10), deviations 1/sqrt 2 and 20/sqrt 2: all are -+ 1/sqrt 2,
    so the sums are -sqrt 2 and sqrt 2. b: (1, 7) and (0, 7): the second reward is equal: 1/sqrt 2 and -1/sqrt 2.
    Over four rows: mean 0, variance (2 + 2 + 1/2 + 1/2) / 3 = 5/3.
    """
    components = torch.tensor([[0.0, 10], [1, 30], [1, 7], [0, 7]], dtype=torch.float64)
    got = run("gdpo", [0] * 4, ["a", "a", "b", "b"], reward_components=components, epsilon=0.0)
    s = math.sqrt(5 / 3 + 1e-8)
    r = math.sqrt(2)
    close(got, -r / s, r / s, r / 2 / s, -r / 2 / s)


def test_gdpo_weights_and_plain_differences_by_hand():
    """Weights 2 and 0.1 of centred rewards: a: -+(1 + 1), b: +-1. Variance (4 + 4 + 1 + 1) / 3."""
    components = torch.tensor([[0.0, 10], [1, 30], [1, 7], [0, 7]], dtype=torch.float64)
    got = run(
        "gdpo",
        [0] * 4,
        ["a", "a", "b", "b"],
        reward_components=components,
        weights=[2, 0.1],
        norm_by_std=False,
    )
    s = math.sqrt(10 / 3 + 1e-8)
    close(got, -2 / s, 2 / s, 1 / s, -1 / s)


def test_gdpo_over_tokens_by_hand():
    """Sums -1/2 and 1/2 with 2 tokens and 1: mean -1/6, deviations -1/3, -1/3, 2/3, variance 6/9 / 2 = 1/3."""
    got = run(
        "gdpo",
        [0, 0],
        ["a", "a"],
        [[1.0, 1], [1, 0]],
        reward_components=torch.tensor([[0.0], [1.0]], dtype=torch.float64),
        norm_by_std=False,
        norm_level="token",
    )
    s = math.sqrt(1 / 3 + 1e-8)
    close(got, [-1 / 3 / s, -1 / 3 / s], [2 / 3 / s, 0])


def test_gdpo_tells_apart_what_a_sum_does_not():
    """Both prompts' sums are 0 and 1 and, to GRPO, alike; the second prompt's better answer has one reward more."""
    components = torch.tensor([[0.0, 0], [0, 1], [0, 0], [1, 1]], dtype=torch.float64)
    got = run("gdpo", [0, 1, 0, 2], ["a", "a", "b", "b"], reward_components=components)
    assert got[3] > got[1] > 0
    grpo = run("grpo", [0, 1, 0, 2], ["a", "a", "b", "b"])
    assert grpo[3].item() == pytest.approx(grpo[1].item(), rel=1e-5)


def test_gdpo_takes_verls_columns():
    """As reward functions in verl return them: a list of numbers in an object array."""
    columns = {"format": uids(0, 1, 1, 0), "accuracy": uids(10.0, 30.0, 7.0, 7.0)}
    index, components = ["a", "a", "b", "b"], torch.tensor([[0.0, 10], [1, 30], [1, 7], [0, 7]]).double()
    got = run("gdpo", [0] * 4, index, non_tensor_batch=columns, reward_keys=["format", "accuracy"])
    assert torch.equal(got, run("gdpo", [0] * 4, index, reward_components=components))


def test_gdpo_reads_columns_at_full_precision():
    """Rewards in bfloat16 are no reason to round 1000.5 to 1000."""
    rewards = torch.zeros(2, 1, dtype=torch.bfloat16)
    got = rl_estimators.estimate(
        "gdpo",
        token_level_rewards=rewards,
        response_mask=torch.ones(2, 1),
        index=["q", "q"],
        non_tensor_batch={"one": uids(1000.0, 1000.5)},
        reward_keys=["one"],
    )
    assert got.advantages[1] > got.advantages[0]


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
def test_gdpo_by_name_in_verls_configuration():
    """The hook keeps verl's batch at hand; its columns and algorithm.adv_estimator_kwargs are all GDPO needs."""
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl import DataProto

    from rl_estimators.verl import batch as verl_batch
    from rl_estimators.verl.estimators import as_verl

    tensors = {"token_level_rewards": torch.zeros(4, 1), "response_mask": torch.ones(4, 1)}
    columns = {"uid": uids(*"aabb"), "format": uids(0, 1, 1, 0), "accuracy": uids(10.0, 30.0, 7.0, 7.0)}
    config = OmegaConf.create(
        {"adv_estimator_kwargs": {"reward_keys": ["format", "accuracy"], "weights": [2, 1]}}
    )
    with verl_batch.estimating(DataProto.from_dict(tensors=tensors, non_tensors=columns)):
        got = as_verl("gdpo")(**tensors, index=columns["uid"], config=config).advantages
    components = torch.tensor([[0.0, 10], [1, 30], [1, 7], [0, 7]])
    wanted = rl_estimators.estimate(
        "gdpo", **tensors, index=columns["uid"], reward_components=components, weights=[2, 1]
    )
    assert torch.equal(got, wanted.advantages)


# ---- what the group estimators climb: expectations over all outcomes of n answers, solved with chance p
#
# With one parameter p the score function of a solved answer is d log p / dp = 1 / p, of a failed one -1 / (1 - p).


def expected_gradient(name, n, p, reduce, **options):
    total = 0.0
    for outcome in itertools.product([0, 1], repeat=n):
        solved = np.array(outcome)
        chance = p ** solved.sum() * (1 - p) ** (n - solved.sum())
        advantages = run(name, [*outcome], ["q"] * n, **options)[:, 0].numpy()
        total += chance * reduce(advantages * np.where(solved, 1 / p, -1 / (1 - p)))
    return total


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("n", [2, 3, 5])
class TestObjectives:
    def test_rloo_climbs_the_chance_to_solve(self, n, p):
        """d p / dp = 1, without bias."""
        assert expected_gradient("rloo", n, p, np.mean) == pytest.approx(1)

    def test_dr_grpo_is_smaller_by_its_own_share_in_the_mean(self, n, p):
        gradient = expected_gradient("grpo", n, p, np.mean, norm_by_std=False)
        assert gradient == pytest.approx((n - 1) / n)

    def test_maxrl_climbs_the_likelihood(self, n, p):
        """sum_{k < n - 1} (1 - p)^k, the first terms of 1 / p = d log p / dp."""
        wanted = sum((1 - p) ** k for k in range(n - 1))
        assert expected_gradient("maxrl", n, p, np.mean) == pytest.approx(wanted)

    def test_passk_climbs_the_chance_that_one_of_k_solves(self, n, p):
        """d (1 - (1 - p)^n) / dp = n (1 - p)^(n - 1), without bias."""
        wanted = n * (1 - p) ** (n - 1)
        assert expected_gradient("grpo_passk", n, p, np.sum, norm_by_std=False) == pytest.approx(wanted)


# ---- properties


def drawn(seed, rows=9, width=5):
    """Groups of unequal size, lying apart; scores are multiples of 1/8 and at least 0; NaN at masked positions."""
    rng = np.random.default_rng(seed)
    mask = torch.tensor(rng.random((rows, width)) < 0.7)
    mask[:, 0] = True
    rewards = torch.tensor(rng.integers(0, 24, (rows, width)) / 8).masked_fill(~mask, math.nan)
    return {
        "token_level_rewards": rewards,
        "response_mask": mask,
        "index": uids(*rng.choice([*"abc"], rows)),
        "reward_components": torch.tensor(rng.integers(0, 24, (rows, 2)) / 8),
    }


def estimate(name, batch, **options):
    return rl_estimators.estimate(name, **batch, **options).advantages


def same(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


seeds = pytest.mark.parametrize("seed", range(6))


@seeds
@each
class TestProperties:
    def test_permutation(self, name, seed):
        batch = drawn(seed)
        order = np.random.default_rng(seed).permutation(len(batch["index"]))
        moved = {key: x[order] if key == "index" else x[torch.tensor(order)] for key, x in batch.items()}
        same(estimate(name, moved), estimate(name, batch)[torch.tensor(order)])

    def test_names_of_groups_do_not_matter(self, name, seed):
        batch = drawn(seed)
        names = {"a": 2**62, "b": "01", "c": "1"}
        renamed = {**batch, "index": uids(*(names[uid] for uid in batch["index"]))}
        assert torch.equal(estimate(name, renamed), estimate(name, batch))

    def test_a_constant_for_every_response_of_a_prompt(self, name, seed):
        """Changes nothing, but for MaxRL, which has no shift to give away."""
        batch = drawn(seed)
        shift = torch.tensor([{"a": 1.0, "b": 2.5, "c": 0.0}[uid] for uid in batch["index"]]).double()
        raised = {**batch, "token_level_rewards": batch["token_level_rewards"].clone()}
        raised["token_level_rewards"][:, 0] += shift
        raised["reward_components"] = batch["reward_components"] + shift[:, None]
        if name == "maxrl":
            assert (estimate(name, raised) - estimate(name, batch)).abs().max() > 0.01
        else:
            same(estimate(name, raised), estimate(name, batch))

    def test_holes_are_cut_out(self, name, seed):
        """Masked columns of NaN anywhere, and a row of them, change nothing."""
        batch = drawn(seed)
        at, wide = torch.tensor([1, 2, 4, 6, 7]), {**batch}
        for key in ("token_level_rewards", "response_mask"):
            fill = math.nan if key == "token_level_rewards" else 0
            wide[key] = torch.full((len(batch["index"]) + 1, 9), fill).to(batch[key].dtype)
            wide[key][:-1, at] = batch[key]
        wide["index"] = np.append(batch["index"], "a")
        wide["reward_components"] = torch.cat([batch["reward_components"], torch.full((1, 2), math.nan)])
        actual = estimate(name, wide)
        same(actual[:-1, at], estimate(name, batch))
        assert actual.count_nonzero() == actual[:-1, at].count_nonzero()

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_bad_score_is_as_good_as_absent(self, name, seed, bad):
        batch = drawn(seed)
        spoiled = {**batch, "token_level_rewards": batch["token_level_rewards"].clone()}
        spoiled["token_level_rewards"][2, 0] = bad
        others = [b for b in range(len(batch["index"])) if b != 2]
        with collect_metrics() as metrics:
            actual = estimate(name, spoiled)
        same(actual[others], estimate(name, {key: x[others] for key, x in batch.items()}))
        assert (actual[2] == 0).all()
        assert metrics["excluded_responses"] == 1

    def test_inputs_are_unchanged_and_not_handed_back(self, name, seed):
        batch = drawn(seed)
        before = {key: x.copy() if key == "index" else x.clone() for key, x in batch.items()}
        estimate(name, batch).fill_(7)
        for key, x in batch.items():
            assert (
                (x == before[key]).all()
                if key == "index"
                else torch.equal(x.nan_to_num(), before[key].nan_to_num())
            )


@seeds
def test_dr_grpo_is_rloo_but_for_a_factor(seed):
    """(s - mean) = (n - 1) / n (s - mean of the others)."""
    batch = drawn(seed)
    size = torch.tensor([(batch["index"] == uid).sum() for uid in batch["index"]])[:, None]
    same(estimate("grpo", batch, norm_by_std=False), estimate("rloo", batch) * (size - 1) / size)


@seeds
def test_opo_with_equal_lengths_is_dr_grpo(seed):
    batch = drawn(seed)
    batch["response_mask"] = torch.ones_like(batch["response_mask"])
    batch["token_level_rewards"] = batch["token_level_rewards"].nan_to_num(0.0)
    same(estimate("opo", batch), estimate("grpo", batch, norm_by_std=False))


@seeds
def test_gpg_with_alpha_1_is_dr_grpo(seed):
    batch = drawn(seed)
    same(estimate("gpg", batch, alpha=1.0), estimate("grpo", batch, norm_by_std=False))


@seeds
def test_maxrl_does_not_see_the_unit_of_reward(seed):
    batch = drawn(seed)
    more = {**batch, "token_level_rewards": 3 * batch["token_level_rewards"]}
    same(estimate("maxrl", more), estimate("maxrl", batch))


@seeds
@pytest.mark.parametrize("name", ["reinforce_pp_baseline", "gdpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_normalised_over_the_batch(name, level, seed):
    """Mean 0 and variance 1 over tokens, or over responses; 1e-8 beside a variance of order 1."""
    batch = drawn(seed)
    advantages = estimate(name, batch, norm_level=level)
    counted = advantages[batch["response_mask"]] if level == "token" else advantages[:, 0]
    assert counted.mean().item() == pytest.approx(0, abs=1e-12)
    assert counted.var().item() == pytest.approx(1, rel=1e-6)


def test_gdpo_leaves_out_a_response_with_a_bad_component():
    batch = drawn(0)
    components = batch["reward_components"].clone()
    components[2, 1] = math.nan
    others = [b for b in range(len(components)) if b != 2]
    with collect_metrics() as metrics:
        actual = estimate("gdpo", {**batch, "reward_components": components})
    same(actual[others], estimate("gdpo", {key: x[others] for key, x in batch.items()}))
    assert (actual[2] == 0).all()
    assert metrics["excluded_responses"] == 1


# ---- messages


COLUMNS = {"format": uids(0, 1), "words": uids("many", 2), "short": uids(1)}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rloo", {"singleton": "rw"}, "rloo: singleton is 'rw', expected one of zero, raw. Did you mean 'raw'"),
        ("reinforce_pp_baseline", {"norm_level": "tokens"}, "norm_level is 'tokens', expected one of token, sequence"),
        ("gpg", {"f_norm": 0}, r"gpg: f_norm is 0, expected a number in \[1e-12, inf\]"),
        ("gpg", {"alpha": -1}, r"gpg: alpha is -1, expected a number in \[0, inf\]"),
        ("grpo_passk", {"epsilon": -1}, r"grpo_passk: epsilon is -1, expected a number in \[0, inf\]"),
        ("maxrl", {"token_level_rewards": torch.tensor([[1.0], [-0.5]])}, "maxrl: a response scores -0.5, expected at least 0"),
        ("gdpo", {"reward_components": torch.zeros(3, 2)}, "gdpo: reward_components has B=3, but .* has B=2"),
        ("gdpo", {"reward_components": torch.zeros(2)}, r"gdpo: reward_components has shape \(2,\), expected \(B, K\)"),
        ("gdpo", {"reward_components": torch.zeros(2, 0)}, "gdpo: reward_components has K=0, expected at least one"),
        ("gdpo", {}, "gdpo needs rewards to take apart: pass reward_components"),
        ("gdpo", {"reward_keys": ["format"]}, "gdpo needs rewards to take apart"),
        ("gdpo", {"non_tensor_batch": COLUMNS}, "reward_keys=.NAME"),
        ("gdpo", {"non_tensor_batch": COLUMNS, "reward_keys": ["formt"]}, "'formt', expected one of .*mean 'format'"),
        ("gdpo", {"non_tensor_batch": COLUMNS, "reward_keys": ["words"]}, "column 'words' holds what is no number: .*many"),
        ("gdpo", {"non_tensor_batch": COLUMNS, "reward_keys": ["short"]}, r"column 'short' has shape \(1,\), expected \(2,\)"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "reward_keys": ["format"]}, "are both given; keep one"),
        ("gdpo", {"non_tensor_batch": COLUMNS, "reward_keys": "abc"}, "gdpo: reward_keys is 'abc', expected a list of names"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "weights": 1.0}, "weights is 1.0, expected 2 finite numbers"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "weights": "ab"}, r"weights is \['a', 'b'\], expected 2 finite"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "weights": [1, math.nan]}, r"weights is \[1, nan\], expected 2"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "weights": [1]}, r"weights is \[1\], expected 2 finite numbers"),
        ("gdpo", {"reward_components": torch.zeros(2, 1), "weights": [math.nan]}, "expected 1 finite numbers"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "epsilon": -1}, "gdpo: epsilon is -1"),
        ("gdpo", {"reward_components": torch.zeros(2, 2), "norm_level": "batch"}, "norm_level is 'batch', expected one of sequence"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, options, message):
    given = {"token_level_rewards": torch.zeros(2, 1), "response_mask": torch.ones(2, 1), "index": ["q", "q"]}
    with pytest.raises(InputError, match=message):
        rl_estimators.estimate(name, **{**given, **options})


def test_a_masked_or_bad_negative_score_is_no_score():
    """MaxRL refuses negative scores only where they count."""
    rewards = torch.tensor([[0.0, -9], [1, -9], [-9, -9], [-9, math.nan]])
    mask = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 1]])
    got = rl_estimators.estimate("maxrl", token_level_rewards=rewards, response_mask=mask, index=["q"] * 4)
    assert got.advantages.tolist() == [[-1, 0], [1, 0], [0, 0], [0, 0]]


def test_an_empty_batch():
    nothing = torch.zeros(0, 3)
    for name in NAMES:
        given = {"reward_components": torch.zeros(0, 2)} if name == "gdpo" else {}  # K is still known
        got = rl_estimators.estimate(
            name, token_level_rewards=nothing, response_mask=nothing, index=[], **given
        )
        assert got.advantages.shape == (0, 3)


# ---- verl 0.9: equal where the definitions are, and where not, pinned


def verl(function):
    return pytest.mark.verl(pytest.mark.filterwarnings("ignore")(function))


def verl_estimate(name, batch, /, **given):
    """(B, T) advantages of verl's own function, on masked rewards, as verl's trainer hands them over."""
    pytest.importorskip("verl")
    version = importlib.metadata.version("verl")
    if not version.startswith("0.9."):
        pytest.skip(f"pins verl 0.9, found {version}")
    from verl.trainer.ppo import core_algos

    theirs = {"reinforce_pp_baseline": "reinforce_plus_plus_baseline"}.get(name, name)
    rewards = torch.where(batch["response_mask"], batch["token_level_rewards"], 0)
    function = core_algos.get_adv_estimator_fn(theirs)
    return function(rewards, batch["response_mask"].to(rewards.dtype), index=batch["index"], **given)[0]


def without_singletons(seed):
    batch = drawn(seed)
    batch["index"][:6] = [*"aabbcc"]
    return batch


@verl
@seeds
@pytest.mark.parametrize("name", ["rloo", "reinforce_pp_baseline", "opo"])
def test_equal_to_verl(name, seed):
    batch = without_singletons(seed)
    same(estimate(name, batch), verl_estimate(name, batch))


@verl
@seeds
def test_rloo_equals_verls_vectorised_one_with_singletons_as_well(seed):
    batch = drawn(seed)
    batch["index"][0] = "alone"
    same(estimate("rloo", batch), verl_estimate("rloo_vectorized", batch))


@verl
@seeds
@pytest.mark.parametrize("norm_by_std", [True, False])
def test_grpo_passk_equals_verl(norm_by_std, seed):
    batch = without_singletons(seed)
    wanted = verl_estimate("grpo_passk", batch, config={"norm_adv_by_std_in_grpo": norm_by_std})
    same(estimate("grpo_passk", batch, norm_by_std=norm_by_std), wanted)


@verl
@seeds
def test_gdpo_over_tokens_equals_verl(seed):
    """verl puts a component's score on a response's last token, so masks here have no holes; epsilon 1e-6 in both.

    verl computes components in float32: a few roundings (6e-8) of numbers of order 1, over a spread of order 1.
    """
    batch = without_singletons(seed)
    lengths = batch["response_mask"].sum(-1)
    batch["response_mask"] = torch.arange(5) < lengths[:, None]
    batch["token_level_rewards"] = torch.zeros(9, 5, dtype=torch.float64)
    components = batch.pop("reward_components")
    wanted = verl_estimate(
        "gdpo",
        batch,
        config={"gdpo_reward_keys": ["one", "two"], "gdpo_reward_weights": [1.0, 0.5]},
        non_tensor_batch={"one": components[:, 0].numpy(), "two": components[:, 1].numpy()},
        batch={"prompts": torch.ones(9, 2), "attention_mask": torch.cat([torch.ones(9, 2), batch["response_mask"]], 1).long()},
    )  # fmt: skip
    ours = estimate(
        "gdpo", {**batch, "reward_components": components}, weights=[1.0, 0.5], norm_level="token"
    )
    torch.testing.assert_close(ours, wanted.double(), rtol=1e-5, atol=1e-5)


SINGLE = {
    "token_level_rewards": torch.tensor([[5.0], [1.0], [3.0]]),
    "response_mask": torch.ones(3, 1, dtype=torch.bool),
    "index": uids("alone", "q", "q"),
}


@verl
@pytest.mark.parametrize("name", ["rloo", "opo"])
def test_a_group_of_one_gets_its_raw_score_in_verl(name):
    assert estimate(name, SINGLE)[0] == 0
    assert verl_estimate(name, SINGLE)[0] == 5


@verl
def test_a_group_of_one_moves_the_whole_batch_in_verls_reinforce_pp_baseline():
    """verl whitens 5, -1, 1; ours 0, -1, 1."""
    torch.testing.assert_close(
        estimate("reinforce_pp_baseline", SINGLE), torch.tensor([[0.0], [-1.0], [1.0]])
    )
    assert verl_estimate("reinforce_pp_baseline", SINGLE)[2] < 0


@verl
def test_a_group_of_one_stops_verls_pass_at_k():
    assert estimate("grpo_passk", SINGLE, norm_by_std=False).flatten().tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match="at least 2 samples per group"):
        verl_estimate("grpo_passk", SINGLE, config={})


@verl
def test_gpg_counts_scores_other_than_zero_in_verl():
    """Group a: 0 and 1. Group b: 1 and 1, which teaches nothing. B - M is 2, so alpha is 2: -1 and 1.

    verl counts three scores other than 0: alpha 4/3, and -2/3 and 2/3. Had b scored 0 and 0, verl's alpha were 4.
    """
    batch = {**SINGLE, "token_level_rewards": torch.tensor([[0.0], [1.0], [1.0], [1.0]])}
    batch |= {"response_mask": torch.ones(4, 1, dtype=torch.bool), "index": uids("a", "a", "b", "b")}
    assert estimate("gpg", batch).flatten().tolist() == [-1, 1, 0, 0]
    wanted = torch.tensor([[-2 / 3], [2 / 3], [0.0], [0.0]])
    torch.testing.assert_close(verl_estimate("gpg", batch).float(), wanted)
    failed = {**batch, "token_level_rewards": torch.tensor([[0.0], [1.0], [0.0], [0.0]])}
    assert estimate("gpg", failed).flatten().tolist() == [-1, 1, 0, 0]
    assert verl_estimate("gpg", failed).flatten().tolist() == [-2, 2, 0, 0]


def tied(*sizes):
    """Groups of equal float32 scores, 1000.1."""
    rows = sum(sizes)
    return {
        "token_level_rewards": torch.full((rows, 1), 1000.1),
        "response_mask": torch.ones(rows, 1, dtype=torch.bool),
        "index": uids(*(number for number, size in enumerate(sizes) for _ in range(size))),
    }


@verl
@pytest.mark.parametrize("name", ["rloo", "opo", "gpg"])
def test_equal_scores_are_worth_a_rounding_error_in_verl(name):
    """About 6e-5: for some sizes the mean is off in its last digit; for which depends on the order of the sum."""
    batches = [tied(size) for size in range(2, 12)]
    assert all((estimate(name, batch) == 0).all() for batch in batches)
    assert 1e-5 < max(verl_estimate(name, batch).abs().max() for batch in batches) < 1e-3


@verl
def test_equal_scores_are_normalised_in_verls_reinforce_pp_baseline():
    """A rounding error of 6e-5 in some groups and of 0 in others, over sqrt(variance + 1e-8): of order 0.1."""
    batches = [tied(size, other) for size in range(2, 9) for other in range(2, 9)]
    for batch in batches:
        assert (estimate("reinforce_pp_baseline", batch) == 0).all()
    assert max(verl_estimate("reinforce_pp_baseline", batch).abs().max() for batch in batches) > 0.1


# ---- grpo with another library's numbers


@verl
@seeds
@pytest.mark.parametrize("norm_by_std", [True, False])
def test_grpo_compat_verl_equals_verl(norm_by_std, seed):
    """Groups of one included, where verl's 1 + 1e-6 is float32: half an epsilon of it is 6e-8."""
    batch = drawn(seed)
    batch["index"][0] = "alone"
    wanted = verl_estimate("grpo", batch, norm_adv_by_std_in_grpo=norm_by_std)
    actual = estimate("grpo", batch, compat="verl", norm_by_std=norm_by_std)
    torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-9)


def trl_advantages(rewards, num_generations, scale):
    """TRL 1.16.0, trl/trainer/grpo_trainer.py:2761-2810 with nanstd of trl/trainer/utils.py:1021, in numpy.

    One reward function of weight 1; NaN stands for a completion that nobody could score.
    """
    grouped = rewards.reshape(-1, num_generations)
    scored = ~np.isnan(grouped)
    number = scored.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # a group of which nothing, or one, is scored is NaN
        centred = grouped - np.where(scored, grouped, 0).sum(axis=1, keepdims=True) / number
        variance = np.where(scored, centred, 0) ** 2
        std = np.sqrt(variance.sum(axis=1, keepdims=True) / np.where(number > 1, number - 1, np.nan))
        std = np.zeros_like(std) if num_generations == 1 else std
        advantages = centred / (std + 1e-4) if scale else centred
    return np.nan_to_num(advantages, nan=0.0).reshape(-1)


@seeds
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("num_generations", [1, 3, 4])
def test_grpo_compat_trl_equals_trl(num_generations, scale, seed):
    """Rewards of 0 and 1 so that some groups tie, NaN in some."""
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 2, 24).astype(np.float64)
    rewards[rng.random(24) < 0.2] = np.nan
    got = run("grpo", rewards, np.arange(24) // num_generations, compat="trl", norm_by_std=scale)
    close(got, *trl_advantages(rewards, num_generations, scale))


@pytest.mark.trl
def test_the_transcript_is_of_this_trl():
    """Its formula as the installed TRL has it; if this fails, look at trl_advantages again."""
    pytest.importorskip("trl")
    import inspect

    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer)
    for line in (
        "mean_grouped_rewards = torch.nanmean(rewards.view(-1, num_generations), dim=1)",
        "std_rewards = nanstd(rewards.view(-1, num_generations), dim=1)",
        "advantages = rewards - mean_grouped_rewards",
        "advantages = advantages / (std_rewards + 1e-4)",
        "advantages = torch.nan_to_num(advantages, nan=0.0)",
    ):
        assert line in source


def test_grpo_without_compat_is_neither():
    """Scores 1 and 3: std sqrt 2. The group of one gets its score over 1 + 1e-6 in verl, nothing elsewhere."""
    r = math.sqrt(2)
    scores, index = [1, 3, 7], ["a", "a", "b"]
    close(run("grpo", scores, index), -1 / (r + 1e-6), 1 / (r + 1e-6), 0)
    close(run("grpo", scores, index, compat="verl"), -1 / (r + 1e-6), 1 / (r + 1e-6), 7 / (1 + 1e-6))
    close(run("grpo", scores, index, compat="trl"), -1 / (r + 1e-4), 1 / (r + 1e-4), 0)
    close(
        run("grpo", scores, index, compat="trl", epsilon=1e-4, singleton="zero"),
        -1 / (r + 1e-4),
        1 / (r + 1e-4),
        0,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compat": "trl", "epsilon": 1e-3}, "grpo: epsilon=0.001 contradicts compat='trl', which has 0.0001; drop one"),
        ({"compat": "trl", "singleton": "raw"}, "grpo: singleton='raw' contradicts compat='trl', which has 'zero'"),
        ({"compat": "ver"}, "grpo: compat is 'ver', expected one of verl, trl. Did you mean 'verl'"),
    ],
)  # fmt: skip
def test_grpo_options_that_contradict_compat(options, message):
    with pytest.raises(InputError, match=message):
        run("grpo", [1, 3], ["a", "a"], **options)


def test_grpo_over_the_batchs_standard_deviation():
    """Scores 0, 2 | 1, 1 | 5, 7: the batch's mean is 16/6, its variance sum((s - 16/6)^2) / 5 = (80 - 256/6) / 5."""
    scores = torch.tensor([[0.0], [2.0], [1.0], [1.0], [5.0], [7.0]], dtype=torch.float64)
    given = {"token_level_rewards": scores, "response_mask": torch.ones(6, 1), "index": list("aabbcc")}
    std = ((80 - 256 / 6) / 5) ** 0.5
    expected = torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    for more in ({}, {"arithmetic": "trl"}):
        found = rl_estimators.estimate("grpo", **given, std_over="batch", epsilon=0.25, **more).advantages
        torch.testing.assert_close(found, expected / (std + 0.25))
    same = {**given, "token_level_rewards": torch.full((6, 1), 0.9)}
    assert (rl_estimators.estimate("grpo", **same, std_over="batch").advantages == 0).all()


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("name", ["grpo", "rloo", "opo", "gpg", "reinforce_pp_baseline"])
def test_equal_scores_in_fp64_are_equal_in_whatever_order_they_are_added(name, backend):
    """0.1 + 0.2 + 0.3 is 0.6000000000000001 from the left and 0.6 from the right."""
    rewards = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.1]], dtype=torch.float64)
    given = {"token_level_rewards": rewards, "response_mask": torch.ones(3, 3), "index": ["q"] * 3}
    if name == "reinforce_pp_baseline":
        given["whitening"] = {"eps": 0.0}
    assert (rl_estimators.estimate(name, **given, backend=backend).advantages == 0).all()


@pytest.mark.parametrize("scale", [1e20, 1e-25])
@pytest.mark.parametrize("options", [{}, {"std_over": "batch"}])
def test_grpo_at_scales_whose_squares_fp32_does_not_hold(scale, options):
    """Scores s, -s, 0: mean 0 and standard deviation s."""
    rewards = torch.tensor([[scale], [-scale], [0.0]])
    given = {"token_level_rewards": rewards, "response_mask": torch.ones(3, 1), "index": ["q"] * 3}
    found = rl_estimators.estimate("grpo", **given, epsilon=0.0, **options).advantages
    torch.testing.assert_close(found, torch.tensor([[1.0], [-1.0], [0.0]]))


@pytest.mark.parametrize("std_over", ["group", "batch"])
def test_grpo_over_1_for_a_group_of_one_that_keeps_its_raw_score(std_over):
    """Scores 0.7 and 0.2 of two prompts, over 1 + epsilon, whatever the others divide by."""
    given = {"token_level_rewards": torch.tensor([[0.7], [0.2]]), "response_mask": torch.ones(2, 1)}
    options = {"singleton": "raw", "std_over": std_over, "epsilon": 0.25}
    found = rl_estimators.estimate("grpo", **given, index=["a", "b"], **options).advantages
    torch.testing.assert_close(found, torch.tensor([[0.7 / 1.25], [0.2 / 1.25]]))


def test_grpo_refuses_a_standard_deviation_that_nothing_is_divided_by():
    given = {"token_level_rewards": torch.ones(2, 1), "response_mask": torch.ones(2, 1), "index": ["a", "a"]}
    with pytest.raises(InputError, match="std_over='batch' with norm_by_std=False, which divides by nothing"):
        rl_estimators.estimate("grpo", **given, std_over="batch", norm_by_std=False)


def test_grpo_knows_two_standard_deviations():
    with pytest.raises(InputError, match=r"std_over is 'world'"):
        rl_estimators.estimate(
            "grpo",
            token_level_rewards=torch.ones(2, 1),
            response_mask=torch.ones(2, 1),
            index=["a", "a"],
            std_over="world",
        )
