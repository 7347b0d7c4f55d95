"""Conventions on which frameworks differ: against tests/reference/conventions.py, by hand, by property, their messages."""

import math

import numpy as np
import pytest
import torch
from by_hand import close, estimate, matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import cases, conventions, definitions, groups, returns
from reference.tensors import arrays_of, as_tensor, tensors_of

import rl_estimators
from rl_estimators import collect_metrics
from rl_estimators.errors import InputError
from rl_estimators.whitening import STANDARD, Whitening, whitened

NAN = math.nan
WHITENED = [*returns.ESTIMATORS, "reinforce_pp"]
RULES = [
    {},
    {"ddof": 0},
    {"eps": 0.5},
    {"eps": 0.0},
    {"eps_in": "std", "eps": 1e-4},
    {"eps_in": "std", "eps": 0.0, "ddof": 0},
    {"weighting": "sequence"},
    {"weighting": "sequence", "ddof": 0, "eps": 0.1, "eps_in": "std"},
]
BENIGN = ["ragged_prefix", "holes", "all_masked_rows", "nan_at_masked", "nan_score", "large_random"]


def written(options):
    return "-".join(f"{name}={value}" for name, value in options.items()) or "defaults"


# ---- whitening: the function over all cases, the wiring of each estimator over some


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=written)
def test_whitened_against_the_reference(rule, dtype):
    """Bound as tolerance.whitening has it: (1 + |w|) times the rounding of a sum, 64 eps of the largest, over the divisor."""
    eps = torch.finfo(dtype).eps
    for case in cases.SHORT:
        mask = case.response_mask & np.isfinite(np.where(case.response_mask, case.token_level_rewards, 0))
        x = np.where(mask, as_tensor(case.token_level_rewards, dtype).double().numpy(), 0.0)
        places = [np.flatnonzero(row) for row in mask]
        wanted = conventions.whitened(x, places, **rule)
        got = whitened(as_tensor(x, dtype), torch.tensor(mask), Whitening(**rule))
        spread = np.ptp(x[mask]) if mask.any() else 0.0
        off = np.abs(got.double().numpy() - wanted).max()
        largest = np.abs(wanted).max()
        divisor = spread / largest if largest else 1.0  # no smaller than half the true one
        bound = (1 + largest) * 64 * eps * (1 + np.abs(x).max()) / min(divisor or 1.0, 1.0)
        assert got.dtype == dtype
        assert off <= bound, f"{case.name}: off by {off}, allowed {bound}\n{got}\n{wanted}"
        assert (got.numpy()[~mask] == 0).all()


def raw_and_places(name, case):
    """The reference's advantages before they are whitened, and where."""
    wants = ("token_level_rewards", "response_mask", *(("values",) if name in returns.WITH_VALUES else ()))
    arrays = arrays_of(case, wants, torch.float64)
    others = (arrays["values"],) if "values" in arrays else ()
    places = conventions.places_of(arrays["token_level_rewards"], arrays["response_mask"], *others)
    if name == "reinforce_pp":
        return definitions.rewards_to_go(**arrays, gamma=0.9), places, wants
    return returns.ESTIMATORS[name](**arrays, gamma=0.9, whiten=False).advantages, places, wants


@pytest.mark.parametrize("rule", RULES, ids=written)
@pytest.mark.parametrize("name", WHITENED)
def test_every_estimator_takes_them(name, rule):
    on = {} if name == "reinforce_pp" else {"whiten": True}
    for case in BENIGN:
        case = cases.BY_NAME[case]
        raw, places, wants = raw_and_places(name, case)
        wanted = conventions.whitened(raw, places, **rule)
        inputs = tensors_of(case, wants, torch.float64)
        for given_as in (rule, Whitening(**rule)):
            got = rl_estimators.estimate(name, **inputs, gamma=0.9, whitening=given_as, **on)
            np.testing.assert_allclose(got.advantages.numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_whitening_by_hand():
    """G: row 1 (1, 1), row 2 (4).

    Over tokens: mean 2, squares 1 + 1 + 4: 6 / 2 = 3 with ddof 1, 6 / 3 = 2 with ddof 0. Over responses: their means
    are 1 and 4, so the mean is 2.5, and s^2 = (1.5^2 + 1.5^2) / (2 - 1) = 4.5.
    """
    rows, mask = [[0, 1], [4, 9]], [[1, 1], [1, 0]]
    for rule, shift, divisor in (
        ({}, 2, math.sqrt(3 + 1e-8)),
        ({"ddof": 0}, 2, math.sqrt(2 + 1e-8)),
        ({"eps": 1.0}, 2, 2),
        ({"eps": 1.0, "eps_in": "std"}, 2, math.sqrt(3) + 1),
        ({"weighting": "sequence", "eps": 0.0}, 2.5, math.sqrt(4.5)),
        ({"weighting": "sequence", "eps": 0.0, "ddof": 0}, 2.5, 1.5),
    ):
        got = estimate("reinforce_pp", rows, mask, whitening=rule).advantages
        low, high = (1 - shift) / divisor, (4 - shift) / divisor
        close(got, [low, low], [high, 0])


@pytest.mark.parametrize("name", WHITENED)
def test_the_defaults_are_the_defaults_to_the_last_bit(name):
    case = cases.BY_NAME["holes"]
    inputs = tensors_of(case, ("token_level_rewards", "response_mask", "values"), torch.float32)
    on = {} if name == "reinforce_pp" else {"whiten": True}
    wanted = rl_estimators.estimate(name, **inputs, **on).advantages
    for same in (STANDARD, {}, {"ddof": 1, "eps": 1e-8, "weighting": "token", "eps_in": "variance"}):
        got = rl_estimators.estimate(name, **inputs, **on, whitening=same).advantages
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("rule", RULES, ids=written)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_numbers_are_exactly_nothing(rule, dtype):
    """Whatever the convention, eps = 0 included; and so is a single number, and none."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    for at in (mask, mask & False, torch.zeros_like(mask).index_fill(0, torch.tensor([1]), True) & mask):
        got = whitened(torch.where(at, 1000.1, 0.0).to(dtype), at, Whitening(**rule))
        assert (got == 0).all()


REPEATABLE = settings(derandomize=True, max_examples=30, deadline=None, database=None)


@REPEATABLE
@given(
    rows=st.lists(st.lists(st.integers(-64, 64).map(lambda n: n / 8), min_size=1, max_size=4), min_size=2),
    times=st.integers(1, 3),
)
def test_with_sequence_weights_a_longer_response_counts_no_more(rows, times):
    """Every token of the first response said `times` times: its mean and the others' numbers stay."""

    def run(rows):
        width = max(map(len, rows))
        x = matrix(*([*row, *[0.0] * (width - len(row))] for row in rows))
        mask = torch.tensor(cases.prefix_mask([len(row) for row in rows], width))
        out = whitened(x, mask, Whitening(weighting="sequence"))
        return [[float(v) for v in r[: len(row)]] for r, row in zip(out, rows, strict=True)]

    longer = run([rows[0] * times, *rows[1:]])
    plain = run(rows)
    np.testing.assert_allclose(longer[0][: len(rows[0])], plain[0], rtol=1e-9, atol=1e-9)
    for one, other in zip(longer[1:], plain[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert sum(np.mean(row) for row in plain) == pytest.approx(0, abs=1e-9 * len(rows))


# ---- groups

GROUPED = [
    ("grpo", {"ddof": 0}, {"epsilon": 1e-6, "ddof": 0}),
    ("grpo", {"ddof": 0, "singleton": "raw", "epsilon": 0.5}, {"epsilon": 0.5, "ddof": 0, "singleton": "raw"}),
    ("grpo", {"ddof": 0, "norm_by_std": False}, {}),
    ("rloo", {}, {"baseline": "others"}),
    ("rloo", {"singleton": "raw"}, {"baseline": "others", "singleton": "raw"}),
    ("opo", {}, {"baseline": "lengths"}),
    ("opo", {"singleton": "raw"}, {"baseline": "lengths", "singleton": "raw"}),
    ("gpg", {"alpha": 1.0}, {}),
    ("gpg", {"alpha": 1.0, "singleton": "raw"}, {"singleton": "raw"}),
]  # fmt: skip
GROUP_CASES = [
    *BENIGN,
    "singletons",
    "tie_in_one_group",
    "outcome_01",
    "nan_score_leaves_one",
    "int_and_str_uids",
]


@pytest.mark.parametrize("case", GROUP_CASES)
@pytest.mark.parametrize(
    ("name", "options", "how"), GROUPED, ids=lambda v: v if isinstance(v, str) else written(v)
)
def test_groups_against_the_reference(name, options, how, case):
    inputs = ("token_level_rewards", "response_mask", "index")
    arrays = arrays_of(cases.BY_NAME[case], inputs, torch.float64)
    wanted = conventions.within_groups(*(arrays[n] for n in inputs), **how).advantages
    got = rl_estimators.estimate(name, **tensors_of(cases.BY_NAME[case], inputs, torch.float64), **options)
    np.testing.assert_allclose(got.advantages.numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_groups_by_hand():
    """Scores 1 and 3: mean 2, deviation sqrt 2 with ddof 1 and 1 with ddof 0; the third is alone with 5."""
    rows, index = [[1], [3], [5]], ["a", "a", "b"]
    close(estimate("grpo", rows, index=index, ddof=0, epsilon=1.0).advantages, [-0.5], [0.5], [0])
    raw = {"index": index, "singleton": "raw"}
    close(estimate("grpo", rows, **raw, ddof=0, epsilon=1.0).advantages, [-0.5], [0.5], [2.5])
    close(estimate("opo", rows, **raw).advantages, [-1], [1], [5])
    close(estimate("gpg", rows, **raw, alpha=1.0).advantages, [-1], [1], [5])
    # two of three responses are of a group that differs: alpha = 3 / 2, for the raw score as well
    close(estimate("gpg", rows, **raw).advantages, [-1.5], [1.5], [7.5])
    close(estimate("grpo_passk", rows, index=index, ddof=0, epsilon=1.0).advantages, [0], [1], [0])


def test_gpg_dead_responses_by_hand():
    """Scores 0, 1 | 1, 1: of four responses two are of equal scores, alpha 2; one scores 0, alpha 4/3."""
    rows, index = [[0], [1], [1], [1]], ["a", "a", "b", "b"]
    close(estimate("gpg", rows, index=index).advantages, [-1], [1], [0], [0])
    got = estimate("gpg", rows, index=index, dead="zero_score").advantages
    close(got, [-2 / 3], [2 / 3], [0], [0])


def test_pass_at_k_with_the_deviation_of_the_sample():
    """Scores 0, 1, 4: mean 5/3, squares 25/9 + 4/9 + 49/9 = 26/3, over 3: 26/9; the best is ahead by 3."""
    got = estimate("grpo_passk", [[0], [1], [4]], index=["q"] * 3, ddof=0, epsilon=0.0)
    close(got.advantages, [0], [0], [3 / math.sqrt(26 / 9)])


LEVELS = [("token", {}), ("token", {"ddof": 0, "eps": 0.1}), ("sequence", {"eps_in": "std", "eps": 1e-4})]


@pytest.mark.parametrize("singleton", ["zero", "raw"])
@pytest.mark.parametrize(("level", "rule"), LEVELS, ids=str)
@pytest.mark.parametrize("case", GROUP_CASES)
def test_over_the_batch_against_the_reference(case, level, rule, singleton):
    """reinforce_pp_baseline: the group's mean, then the batch's; with "sequence" each response weighs 1."""
    inputs = ("token_level_rewards", "response_mask", "index")
    arrays = arrays_of(cases.BY_NAME[case], inputs, torch.float64)
    rewards, mask, index = (arrays[n] for n in inputs)
    centred = conventions.within_groups(rewards, mask, index, singleton=singleton).advantages
    places = conventions.places_of(rewards, mask)
    wanted = conventions.whitened(centred, places, weighting=level, **rule)
    got = rl_estimators.estimate(
        "reinforce_pp_baseline",
        **tensors_of(cases.BY_NAME[case], inputs, torch.float64),
        norm_level=level,
        singleton=singleton,
        whitening=rule,
    )
    np.testing.assert_allclose(got.advantages.numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("singleton", ["zero", "raw"])
@pytest.mark.parametrize(("level", "rule"), LEVELS, ids=str)
@pytest.mark.parametrize("case", [name for name in GROUP_CASES if "score" not in name])
def test_gdpo_against_the_reference(case, level, rule, singleton):
    """Each component's standing, summed, over the batch."""
    case = cases.BY_NAME[case]
    inputs = ("token_level_rewards", "response_mask", "index")
    components = groups.components_of(case)
    _, mask, index = (getattr(case, n) for n in inputs)
    total = np.zeros(mask.shape)
    for k in range(components.shape[1]):
        alone = cases.terminal(mask, components[:, k])  # that reward, on the last valid token
        total += conventions.within_groups(
            alone, mask, index, epsilon=0.1, ddof=0, singleton=singleton
        ).advantages
    wanted = conventions.whitened(total, conventions.places_of(alone, mask), weighting=level, **rule)
    got = rl_estimators.estimate(
        "gdpo", **tensors_of(case, inputs, torch.float64), reward_components=as_tensor(components, torch.float64),
        epsilon=0.1, ddof=0, singleton=singleton, norm_level=level, whitening=rule,
    )  # fmt: skip
    np.testing.assert_allclose(got.advantages.numpy(), wanted, rtol=1e-9, atol=1e-9)


# ---- rewards on masked tokens


def test_masked_rewards_by_hand():
    """The 4 sits behind the last valid token; dropped it is nothing, carried the response returns 1 + 4."""
    rows, mask = [[1, 0, 4], [0, 2, 0]], [[1, 1, 0], [1, 1, 1]]
    close(estimate("reinforce", rows, mask).returns, [1, 0, 0], [2, 2, 0])
    close(estimate("reinforce", rows, mask, masked_rewards="drop").returns, [1, 0, 0], [2, 2, 0])
    with collect_metrics() as metrics:
        close(estimate("reinforce", rows, mask, masked_rewards="carry").returns, [5, 4, 0], [2, 2, 0])
    assert metrics["carried_rewards"] == 1


@pytest.mark.parametrize("name", rl_estimators.list_adv_est())
def test_masked_rewards_of_every_estimator(name):
    """Carrying is what it would be to find the reward there; dropping, to find 0."""
    rewards, mask = matrix([1, 0, 4], [0, 2, NAN]), matrix([1, 1, 0], [1, 1, 0])
    moved, gone = matrix([1, 4, 0], [0, 2, 0]), matrix([1, 0, 0], [0, 2, 0])
    inputs = {
        "response_mask": mask,
        "values": matrix([1, 2, 3], [4, 5, 6]),
        "index": ["q", "q"],
        "reward_baselines": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "reward_components": matrix([1, 2], [3, 5]),
    }
    before = rewards.clone()
    for rule, same in (("carry", moved), ("drop", gone)):
        got = rl_estimators.estimate(name, token_level_rewards=rewards, masked_rewards=rule, **inputs)
        wanted = rl_estimators.estimate(name, token_level_rewards=same, **inputs)
        assert torch.equal(got.advantages, wanted.advantages)
        assert torch.equal(got.returns, wanted.returns)
    assert torch.equal(rewards.nan_to_num(), before.nan_to_num())


# ---- messages

ONE = {"token_level_rewards": torch.ones(1, 1), "response_mask": torch.ones(1, 1), "index": ["q"]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reinforce_pp", {"whitening": {"dof": 1}}, "reinforce_pp: a name in whitening is 'dof', expected one of eps, ddof, .* Did you mean 'ddof'"),
        ("reinforce_pp", {"whitening": 1e-6}, r"reinforce_pp: whitening is 1e-06, expected conventions by name, e.g. \{'ddof': 0\}"),
        ("reinforce_pp", {"whitening": {"eps": -1}}, r"reinforce_pp: whitening: eps is -1, expected a number in \[0, inf\]"),
        ("reinforce_pp", {"whitening": {"ddof": 2}}, "whitening: ddof is 2, expected 0 or 1"),
        ("reinforce_pp", {"whitening": {"ddof": 0.5}}, "reinforce_pp: whitening: ddof is 0.5, expected 0 or 1"),
        ("reinforce_pp", {"whitening": {"ddof": True}}, "whitening: ddof is True, expected a number"),
        ("reinforce_pp", {"whitening": {"weighting": "tokens"}}, "whitening: weighting is 'tokens', expected one of token, sequence"),
        ("reinforce_pp", {"whitening": {"eps_in": "sd"}}, "whitening: eps_in is 'sd', expected one of variance, std"),
        ("reinforce", {"whitening": {"ddof": 0}}, "reinforce: whitening is given and whiten is False; set whiten=True, or drop whitening"),
        ("reinforce_pp_baseline", {"whitening": {"weighting": "sequence"}}, "reinforce_pp_baseline: whitening has weighting='sequence', which norm_level says here"),
        ("reinforce_pp_baseline", {"singleton": "rw"}, "reinforce_pp_baseline: singleton is 'rw', expected one of zero, raw"),
        ("opo", {"singleton": "rw"}, "opo: singleton is 'rw', expected one of zero, raw"),
        ("gpg", {"singleton": "rw"}, "gpg: singleton is 'rw', expected one of zero, raw"),
        ("gpg", {"dead": "zero"}, "gpg: dead is 'zero', expected one of equal_scores, zero_score"),
        ("grpo", {"ddof": 2}, "grpo: ddof is 2, expected 0 or 1"),
        ("grpo_passk", {"ddof": -1}, "grpo_passk: ddof is -1, expected 0 or 1"),
        ("gdpo", {"reward_components": torch.ones(1, 1), "ddof": 0.5}, "gdpo: ddof is 0.5, expected 0 or 1"),
        ("gdpo", {"reward_components": torch.ones(1, 1), "singleton": "rw"}, "gdpo: singleton is 'rw', expected one of zero, raw"),
        ("gdpo", {"reward_components": torch.ones(1, 1), "whitening": {"weighting": "sequence"}}, "gdpo: whitening has weighting='sequence', which norm_level says here"),
        ("rloo", {"masked_rewards": "carried"}, "rloo: masked_rewards is 'carried', expected one of drop, carry. Did you mean 'carry'"),
        ("rloo", {"masked_rewards": "carry", "response_mask": torch.ones(1, 2)}, "rloo: response_mask has T=2, but token_level_rewards has T=1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        rl_estimators.estimate(name, **{**ONE, **options})
