"""The estimators without groups: goldens by hand, identities, and tests/reference/returns.py over all cases."""

import math

import numpy as np
import pytest
import torch
from by_hand import close, estimate, matrix
from reference import cases, returns, tolerance
from reference.tensors import MASKS, arrays_of, as_tensor, epsilon_of, tensors_of, working_dtype

import rl_estimators
from rl_estimators import collect_metrics
from rl_estimators.errors import InputError
from rl_estimators.scan import discounted_sum, k_step_return, next_valid

NAN, INF = math.nan, math.inf
NAMES = list(returns.ESTIMATORS)
WITH_VALUES = list(returns.WITH_VALUES)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# ---- against the reference

VARIANTS = {
    "reinforce": [{}, {"gamma": 0.9}, {"gamma": 0.0}, {"whiten": True}, {"gamma": 0.99, "whiten": True}],
    "gae": [{}, {"gamma": 0.99, "lam": 0.95, "whiten": False}, {"gamma": 0.9, "lam": 0.0, "whiten": False}],
    "td": [{}, {"whiten": False}, {"gamma": 0.9, "whiten": False}, {"gamma": 0.0}],
    "k_step_td": [
        {},
        {"k": 2, "whiten": False},
        {"k": 3, "gamma": 0.9, "whiten": False},
        {"k": 5, "gamma": 0.9},
        {"k": 3, "gamma": 0.0, "whiten": False},
        {"k": 1000, "whiten": False},
    ],
    "mc": [{}, {"whiten": False}, {"gamma": 0.9, "whiten": False}, {"gamma": 0.0, "whiten": False}],
    "decoupled_gae": [
        {},
        {"whiten": False},
        {"gamma": 0.9, "lam": 0.5, "critic_lam": 0.8, "whiten": False},
        {"lam": 1.0, "critic_lam": 0.0},
    ],
    "length_adaptive_gae": [
        {},
        {"alpha": 0.5, "whiten": False},
        {"alpha": 0.3, "gamma": 0.9, "critic_lam": 0.7, "whiten": False},
        {"alpha": INF, "whiten": False},
    ],
    "turn_gae": [{}, {"whiten": False}, {"gamma": 0.9, "lam": 0.8, "whiten": False}, {"gamma": 0.5}],
}
LONG_VARIANTS = {
    "reinforce": [{"gamma": 0.99}],
    "td": [{}],
    "k_step_td": [{"k": 1365, "gamma": 0.999}],
    "mc": [{"gamma": 0.99}],
    "decoupled_gae": [{}],
    "length_adaptive_gae": [{"gamma": 0.999}],
    "turn_gae": [{"whiten": False}],
}
VARIANT_IDS = [(name, options) for name in NAMES for options in VARIANTS[name]]


def written(value):
    return "-".join(f"{k}={v}" for k, v in value.items()) or "defaults" if isinstance(value, dict) else None


def ends_of(case):
    """Half of the responses truncated, with a bootstrap value of the size of the others; NaN on the finished ones."""
    rng, rows = cases.rng_of(case.name + " ends"), len(case.response_mask)
    truncated, draws = rng.random(rows) < 0.5, rng.normal(size=rows)
    scale = tolerance.largest(np.where(case.response_mask, case.values, 0.0))
    return {"truncated": truncated, "bootstrap_values": np.where(truncated, scale * draws, NAN)}


def counted_tokens(inputs):
    out = np.zeros(inputs["token_level_rewards"].shape, dtype=bool)
    for b, row in enumerate(returns.rows_of(**inputs)):
        if row is not None:
            out[b, row.at] = True
    return out


def bounds(name, inputs, options, eps):
    """Forward error bounds as in reference/tolerance.py: `recursion` bounds a sum of terms of a magnitude.

    What is summed are rewards (of turns, themselves sums) and TD errors, of at most 3 values; the partial sums are
    the advantages or returns. A response's own lambda, 1 - 1 / (alpha n), is off by up to 4 eps.
    """
    given = dict(inputs)
    if name == "reinforce":
        given["values"] = np.zeros(inputs["token_level_rewards"].shape)
    inside = counted_tokens(given)
    raw = returns.ESTIMATORS[name](**inputs, **{**options, "whiten": False})
    rewards, values = given["token_level_rewards"][inside], given["values"][inside]
    ends = np.array([0.0, *(row.last for row in returns.rows_of(**given) if row is not None)])
    most = tolerance.largest(rewards)
    if name == "turn_gae":
        most = np.abs(np.where(inside, given["token_level_rewards"], 0)).sum(axis=1).max(initial=0.0)
    gamma, steps = options.get("gamma", 1.0), inside.shape[1]
    decays = {
        "decoupled_gae": (options.get("lam", 0.95), options.get("critic_lam", 1.0)),
        "length_adaptive_gae": (1.0, options.get("critic_lam", 1.0)),
        "gae": (options.get("lam", 1.0),) * 2,
    }.get(name, (1.0, 1.0))
    worst_lam = [
        returns.lambda_of(n, options.get("alpha", 0.05)) for n in inside.sum(axis=1) if n
    ] if name == "length_adaptive_gae" else []  # fmt: skip
    if worst_lam:
        decays = (max(worst_lam), decays[1])
    known = 3 * (tolerance.largest(values) + tolerance.largest(ends))
    errors = []
    for decay, output in zip(decays, raw, strict=True):
        magnitude = most + known + 2 * tolerance.largest(output[inside])
        lam_error = 4 if worst_lam else 1
        errors.append(lam_error * tolerance.recursion(eps, steps, gamma * decay, magnitude))
    white = options.get("whiten", name != "reinforce")
    first = tolerance.whitening(eps, raw.advantages[inside], errors[0]) if white else errors[0]
    return first, errors[1] + eps * tolerance.largest(values)


def compare(name, options, case, dtype, mask_dtype, ends=None):
    inputs, names = tensors_of(case, returns.INPUTS[name], dtype, mask_dtype), returns.INPUTS[name]
    arrays = arrays_of(case, names, dtype)
    if ends is not None:
        last = as_tensor(ends["bootstrap_values"], dtype)
        inputs |= {"truncated": torch.tensor(ends["truncated"]), "bootstrap_values": last}
        arrays |= {"truncated": ends["truncated"], "bootstrap_values": last.double().numpy()}
    wanted = returns.ESTIMATORS[name](**arrays, **options)
    limits = bounds(name, arrays, options, epsilon_of(dtype))
    got = rl_estimators.estimate(name, **inputs, **options)
    for field, actual, want, limit in zip(got._fields, got, wanted, limits, strict=True):
        label = f"{field} of {name} {options} on {case.name}, {dtype}, ends {ends is not None}"
        assert actual.dtype == working_dtype(dtype), label
        assert actual.shape == want.shape, label
        assert actual.isfinite().all(), f"{label}\n{actual}"
        off = np.abs(actual.double().numpy() - want).max(initial=0.0)
        assert off <= limit, f"{label}: off by {off}, allowed {limit}\n{actual}\n{want}"
        assert (actual.numpy()[~case.response_mask] == 0).all(), label


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), VARIANT_IDS, ids=written)
def test_against_the_reference(name, options, dtype):
    for case, mask_dtype in zip(cases.SHORT, [*MASKS.values()] * len(cases.SHORT), strict=False):
        compare(name, options, case, dtype, mask_dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "options"), [v for v in VARIANT_IDS if v[0] in WITH_VALUES], ids=written)
def test_truncated_against_the_reference(name, options, dtype):
    for case in cases.SHORT:
        compare(name, options, case, dtype, torch.bool, ends_of(case))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LONG_VARIANTS)
def test_long_response_against_the_reference(name, dtype):
    case = cases.BY_NAME["long_offset"]
    for options in LONG_VARIANTS[name]:
        compare(name, options, case, dtype, torch.bool, ends_of(case) if name in WITH_VALUES else None)


# ---- goldens; r = (1, 3, 5), V = (2, 4, 8), gamma = 1/2 unless said otherwise

HALF = {"gamma": 0.5, "whiten": False}
R, V = [1, 3, 5], [2, 4, 8]


def test_reinforce_by_hand():
    """G_3 = 5, G_2 = 3 + 5/2 = 5.5, G_1 = 1 + 5.5/2 = 3.75."""
    got = estimate("reinforce", [R], gamma=0.5)
    close(got.advantages, [3.75, 5.5, 5])
    close(got.returns, [3.75, 5.5, 5])


def test_reinforce_with_a_hole_and_a_bad_score():
    """The hole is no step. Row 2 has an infinite reward: 0 in both."""
    got = estimate("reinforce", [[1, NAN, 3, 5], [1, 1, 1, INF]], mask=[[1, 0, 1, 1], [1] * 4], gamma=0.5)
    close(got.advantages, [3.75, 0, 5.5, 5], [0] * 4)
    close(got.returns, [3.75, 0, 5.5, 5], [0] * 4)


def test_td_by_hand():
    """1 + 4/2 - 2 = 1; 3 + 8/2 - 4 = 3; 5 - 8 = -3. R = A + V."""
    got = estimate("td", [R], values=matrix(V), **HALF)
    close(got.advantages, [1, 3, -3])
    close(got.returns, [3, 7, 5])


def test_two_step_td_by_hand():
    """1 + 3/2 + 8/4 = 4.5; 3 + 5/2 = 5.5 and the end; 5; less V."""
    got = estimate("k_step_td", [R], values=matrix(V), k=2, **HALF)
    close(got.returns, [4.5, 5.5, 5])
    close(got.advantages, [2.5, 1.5, -3])


def test_mc_by_hand():
    """The returns of test_reinforce_by_hand, less V."""
    got = estimate("mc", [R], values=matrix(V), **HALF)
    close(got.returns, [3.75, 5.5, 5])
    close(got.advantages, [1.75, 1.5, -3])


def test_decoupled_gae_by_hand():
    """TD errors (1, 3, -3); gamma lambda = 1/4: A_2 = 3 - 3/4 = 2.25, A_1 = 1 + 2.25/4; critic lambda 1: R = G."""
    got = estimate("decoupled_gae", [R], values=matrix(V), lam=0.5, **HALF)
    close(got.advantages, [1.5625, 2.25, -3])
    close(got.returns, [3.75, 5.5, 5])


def test_length_adaptive_gae_by_hand():
    """alpha = 2/3, TD errors (1, 3, -3) with values as above and gamma = 1/2.

    Row 1, n = 3: lambda = 1 - 1/2 = 1/2, as in test_decoupled_gae_by_hand. Row 2 has n = 1: 1 - 3/2 < 0, so 0, and
    5 - 8. Row 3, n = 2 around a hole: lambda = 1 - 3/4 = 1/4; errors 3 + 8/2 - 4 = 3 and -3: 3 - 3/8 = 2.625.
    """
    got = estimate(
        "length_adaptive_gae",
        [R, [5, 0, 0], [3, 9, 5]],
        mask=[[1, 1, 1], [1, 0, 0], [1, 0, 1]],
        values=matrix(V, [8, 0, 0], [4, 9, 8]),
        alpha=2 / 3,
        **HALF,
    )
    close(got.advantages, [1.5625, 2.25, -3], [-3, 0, 0], [2.625, 0, -3])
    close(got.returns, [3.75, 5.5, 5], [5, 0, 0], [5.5, 0, 5])


def test_turn_gae_by_hand():
    """Turns (a, b), (c), (d, e) with rewards 0 + 1, 3, 2 + 3 and first values 2, 4, 8: r = (1, 3, 5), V = (2, 4, 8).

    TD errors (1, 3, -3), gamma lambda = 1/4: A = (1.5625, 2.25, -3), R = A + V = (3.5625, 6.25, 5) over each turn.
    The values inside a turn, 70 and 80, play no part.
    """
    got = estimate(
        "turn_gae",
        [[0, 1, NAN, 3, NAN, NAN, 2, 3]],
        mask=[[1, 1, 0, 1, 0, 0, 1, 1]],
        values=matrix([2, 70, NAN, 4, NAN, NAN, 8, 80]),
        lam=0.5,
        **HALF,
    )
    close(got.advantages, [1.5625, 1.5625, 0, 2.25, 0, 0, -3, -3])
    close(got.returns, [3.5625, 3.5625, 0, 6.25, 0, 0, 5, 5])


def test_one_turn_is_a_bandit():
    """Without holes there is one step: A = r - V_1 = 1 + 3 + 5 - 2, whatever gamma."""
    got = estimate("turn_gae", [R], values=matrix(V), **HALF)
    close(got.advantages, [7, 7, 7])
    close(got.returns, [9, 9, 9])


# ---- the value after a truncated response; V_4 = 16

CUT = {"truncated": torch.tensor([True]), "bootstrap_values": vector(16)}
TRUNCATED = {
    "td": ({}, [1, 3, 5], [3, 7, 13]),  # 5 + 8 - 8
    "mc": ({}, [3.75, 5.5, 5], [5.75, 9.5, 13]),  # 5 + 8; 3 + 13/2; 1 + 9.5/2
    "k_step_td": ({"k": 2}, [2.5, 5.5, 5], [4.5, 9.5, 13]),  # 3 + 5/2 + 16/4; 5 + 16/2
    "gae": ({"lam": 0.5}, [2.0625, 4.25, 5], [4.0625, 8.25, 13]),  # errors (1, 3, 5): 3 + 5/4; 1 + 4.25/4
    "decoupled_gae": ({"lam": 0.5}, [2.0625, 4.25, 5], [5.75, 9.5, 13]),
    "length_adaptive_gae": ({"alpha": 2 / 3}, [2.0625, 4.25, 5], [5.75, 9.5, 13]),
    "turn_gae": ({}, [15, 15, 15], [17, 17, 17]),  # 9 + 16/2 - 2
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_by_hand(name):
    options, advantages, targets = TRUNCATED[name]
    got = estimate(name, [R], values=matrix(V), **CUT, **options, **HALF)
    close(got.advantages, advantages)
    close(got.returns, targets)


@pytest.mark.parametrize("flag", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TRUNCATED)
def test_only_truncated_responses_take_their_bootstrap_value(name, flag):
    """Row 1 is truncated, row 2 finished with a NaN that nobody reads."""
    options, advantages, targets = TRUNCATED[name]
    got = estimate(
        name,
        [R, R],
        values=matrix(V, V),
        truncated=torch.tensor([1, 0]).to(flag),
        bootstrap_values=vector(16, NAN),
        **options,
        **HALF,
    )
    finished = estimate(name, [R], values=matrix(V), **options, **HALF)
    close(got.advantages, advantages, finished.advantages[0].tolist())
    close(got.returns, targets, finished.returns[0].tolist())


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("name", WITH_VALUES)
def test_a_difference_that_overflows_excludes_its_response(name, backend):
    """3e38 - -3e38 is more than fp32 holds: the others are whitened as if the response were not there."""
    rewards = torch.tensor([[3e38, 0.0], [1.0, 0.5], [2.0, -1.0]])
    values = torch.tensor([[-3e38, 0.0], [0.25, 0.0], [0.0, 0.5]])
    given = {"token_level_rewards": rewards, "values": values, "response_mask": torch.ones(3, 2)}
    with collect_metrics() as metrics:
        found = rl_estimators.estimate(name, **given, backend=backend)
    assert metrics["excluded_responses"] == 1
    assert (found.advantages[0] == 0).all()
    torch.testing.assert_close(found.returns[0], values[0])
    others = rl_estimators.estimate(name, **{key: x[1:] for key, x in given.items()}, backend=backend)
    torch.testing.assert_close(found.advantages[1:], others.advantages)
    torch.testing.assert_close(found.returns[1:], others.returns)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", WITH_VALUES)
def test_a_bad_bootstrap_value_excludes_a_truncated_response(name, bad):
    """The other row is whitened alone, and the bad one keeps its old values as returns."""
    both = {
        "values": matrix(V, V),
        "truncated": torch.tensor([True, True]),
        "bootstrap_values": vector(bad, 16),
    }
    with collect_metrics() as metrics:
        got = estimate(name, [R, R], **both)
    alone = estimate(name, [R], values=matrix(V), **CUT)
    close(got.advantages, [0, 0, 0], alone.advantages[0].tolist())
    close(got.returns, V, alone.returns[0].tolist())
    assert metrics["excluded_responses"].item() == 1


@pytest.mark.parametrize("name", WITH_VALUES)
def test_a_padding_row_may_hold_anything_as_bootstrap_value(name):
    with collect_metrics() as metrics:
        got = estimate(
            name,
            [R, [NAN] * 3],
            mask=[[1, 1, 1], [0, 0, 0]],
            values=matrix(V, [NAN] * 3),
            truncated=torch.tensor([True, True]),
            bootstrap_values=vector(16, NAN),
        )
    assert (got.advantages[1] == 0).all()
    assert (got.returns[1] == 0).all()
    assert torch.equal(got.returns[:1], estimate(name, [R], values=matrix(V), **CUT).returns)
    assert metrics["excluded_responses"].item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", WITH_VALUES)
def test_nobody_truncated_is_the_default_bit_for_bit(name, dtype):
    for case in cases.SHORT:
        inputs, rows = tensors_of(case, returns.INPUTS[name], dtype), len(case.response_mask)
        plain = rl_estimators.estimate(name, **inputs)
        finished = rl_estimators.estimate(
            name,
            **inputs,
            truncated=torch.zeros(rows),
            bootstrap_values=torch.full((rows,), NAN, dtype=dtype),
        )
        assert all(torch.equal(x, y) for x, y in zip(plain, finished, strict=True)), case.name


@pytest.mark.parametrize("name", WITH_VALUES)
def test_a_bootstrap_value_of_the_next_state_makes_the_cut_invisible(name):
    """td of a response cut after two tokens, bootstrapped with the third value, is the whole response's td."""
    whole = estimate("td", [R], values=matrix(V), whiten=False)
    cut = {"truncated": torch.tensor([True]), "bootstrap_values": vector(V[2])}
    same = {"gae": {"lam": 0.0}, "decoupled_gae": {"lam": 0.0}, "length_adaptive_gae": {"alpha": 0.0}}
    if name in ("td", "k_step_td", *same):
        got = estimate(name, [R[:2]], values=matrix(V[:2]), whiten=False, **cut, **same.get(name, {}))
        close(got.advantages, whole.advantages[0, :2].tolist())
    else:  # and the value of the whole, V = return, does so for sums: 5 to come after two tokens
        cut["bootstrap_values"] = vector(R[2])
        got = estimate(name, [R[:2]], values=matrix(V[:2]), whiten=False, **cut)
        close(got.returns, estimate(name, [R], values=matrix(V), whiten=False).returns[0, :2].tolist())


@pytest.mark.parametrize("name", WITH_VALUES)
@pytest.mark.parametrize("given", ["truncated", "bootstrap_values"])
def test_one_of_the_two_is_refused(name, given):
    other = ({"truncated", "bootstrap_values"} - {given}).pop()
    with pytest.raises(InputError, match=f"{name}: {given} is given without {other}; give both, or neither"):
        estimate(name, [R], values=matrix(V), **{given: CUT[given]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truncated": torch.ones(2)}, "truncated has B=2, but token_level_rewards has B=1"),
        ({"truncated": torch.full((1,), 0.5)}, "truncated has dtype torch.float32 and holds 0.5, expected bool"),
        ({"bootstrap_values": torch.ones(1, 3)}, r"bootstrap_values has shape \(1, 3\), expected \(B,\)"),
        ({"bootstrap_values": torch.ones(1).long()}, "bootstrap_values has dtype torch.int64, expected a floating"),
    ],
)  # fmt: skip
def test_ends_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        estimate("gae", [R], values=matrix(V), **{**CUT, **change})


# ---- the scans themselves


def test_each_row_may_have_its_own_discount():
    """x = (1, 2, 4): with 0, 1/2 and 1: (1, 2, 4); (1 + 1 + 1, 2 + 2, 4); (7, 6, 4); around a hole, which is no step."""
    x, mask = matrix([1, 2, 0, 4], [1, 2, 0, 4], [1, 2, 0, 4]), matrix([1, 1, 0, 1]).bool().expand(3, -1)
    close(discounted_sum(x, mask, vector(0, 0.5, 1)), [1, 2, 0, 4], [3, 4, 0, 4], [7, 6, 0, 4])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0, None])
def test_scans_leave_their_arguments_alone(rows, discount):
    """A single row's transpose is contiguous as it is, so that a recursion in place could reach it."""
    x, mask = matrix(*[[1, 2, 4]] * rows), torch.ones(rows, 3).bool()
    discounted_sum(x, mask, torch.full((rows,), 0.5) if discount is None else discount)
    next_valid(x, mask, x[:, 0])
    k_step_return(x, x, mask, 0.5, 2, x[:, 0])
    assert torch.equal(x, matrix(*[[1, 2, 4]] * rows))


def test_next_valid_ends_in_last():
    """The next valid token's number, and 9 or 7 after the last one."""
    x, mask = matrix([1, 2, 3, 4], [5, 6, 0, 0]), matrix([1, 0, 1, 1], [1, 1, 0, 0]).bool()
    after = next_valid(x, mask, vector(9, 7))
    close(torch.where(mask, after, 0), [3, 0, 4, 9], [6, 7, 0, 0])
    close(torch.where(mask, next_valid(x, mask), 0), [3, 0, 4, 0], [6, 0, 0, 0])


# ---- identities, over all cases, truncated and not

ALL = [(case, ends) for case in cases.SHORT for ends in (None, ends_of(case))]
SAME = [
    (("td", {}), ("gae", {"lam": 0.0})),
    (("td", {}), ("k_step_td", {"k": 1})),
    (("td", {}), ("decoupled_gae", {"lam": 0.0, "critic_lam": 0.0})),
    (("td", {}), ("length_adaptive_gae", {"alpha": 0.0, "critic_lam": 0.0})),
    (("mc", {}), ("gae", {"lam": 1.0})),
    (("mc", {}), ("k_step_td", {"k": 33})),  # as long as the longest of the cases
    (("mc", {}), ("k_step_td", {"k": 10**9})),
    (("mc", {}), ("length_adaptive_gae", {"alpha": INF})),
    (("gae", {"lam": 0.7}), ("decoupled_gae", {"lam": 0.7, "critic_lam": 0.7})),
]


def run(name, case, ends, **options):
    inputs = tensors_of(case, returns.INPUTS[name], torch.float64)
    if ends is not None and name in WITH_VALUES:
        inputs |= {key: torch.tensor(x) for key, x in ends.items()}
    return rl_estimators.estimate(name, **inputs, **options)


def scale_of(case):
    numbers = (case.token_level_rewards, case.values)
    return 1 + max(tolerance.largest(x[case.response_mask]) for x in numbers)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda pair: f"{pair[0]} {written(pair[1])}")
def test_same_by_another_name(one, other, gamma):
    """In float64, where sums of at most 33 terms in another order differ by far less than 1e-12 of their size."""
    for case, ends in ALL:
        first, second = (run(n, case, ends, gamma=gamma, whiten=False, **opts) for n, opts in (one, other))
        for x, y in zip(first, second, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12 * scale_of(case))


def test_one_step_is_td_to_the_last_bit():
    for case, ends in ALL:
        one, other = run("td", case, ends, gamma=0.9), run("k_step_td", case, ends, gamma=0.9, k=1)
        assert torch.equal(one.advantages, other.advantages), case.name


@pytest.mark.parametrize("name", ["gae", "mc", "decoupled_gae", "length_adaptive_gae"])
def test_undiscounted_targets_are_the_sums_of_rewards_to_go(name):
    """gamma = lambda = 1: A + V telescopes to the rewards still to come, and the last value."""
    for case, ends in ALL:
        got = run(name, case, ends, whiten=False, **({"lam": 1.0} if name == "gae" else {}))
        rows = returns.rows_of(case.token_level_rewards, case.values, case.response_mask, **(ends or {}))
        for b, row in enumerate(rows):
            if row is not None:
                wanted = np.array([np.sum(row.r[k:]) + row.last for k in range(len(row.r))])
                actual = got.returns[b, row.at].numpy()
                np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-12 * scale_of(case))


def test_gae_is_the_mean_of_the_k_step_estimators():
    """Eq. 16 as it is defined: (1 - lam) sum_k lam^(k-1) A^(k), and lam^(n-1) A^(n) for all that reach the end."""
    lam, width = 0.7, 7
    for name in ("ragged_prefix", "holes", "leading_masked"):
        case = cases.BY_NAME[name]
        options = {"gamma": 0.9, "whiten": False}
        wanted = (
            sum(
                (1 - lam) * lam ** (k - 1) * run("k_step_td", case, None, k=k, **options).advantages
                for k in range(1, width)
            )
            + lam ** (width - 1) * run("k_step_td", case, None, k=width, **options).advantages
        )
        actual = run("gae", case, None, lam=lam, **options).advantages
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_reinforce_whitened_is_reinforce_pp():
    for case, _ in ALL:
        one, other = run("reinforce", case, None, gamma=0.9, whiten=True), run_pp(case)
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True)), case.name


def run_pp(case):
    inputs = tensors_of(case, ("token_level_rewards", "response_mask"), torch.float64)
    return rl_estimators.estimate("reinforce_pp", **inputs, gamma=0.9)


def test_mc_without_values_is_reinforce():
    for case, _ in ALL:
        inputs = tensors_of(case, returns.INPUTS["reinforce"], torch.float64)
        values = torch.zeros(case.response_mask.shape, dtype=torch.float64)
        one = rl_estimators.estimate("mc", **inputs, values=values, gamma=0.9, whiten=False)
        other = rl_estimators.estimate("reinforce", **inputs, gamma=0.9)
        assert torch.equal(one.advantages, other.advantages), case.name
        assert torch.equal(one.returns, other.returns), case.name


def test_turns_of_one_token_are_gae():
    """A masked position between any two tokens: every token is a turn."""
    case = cases.make("one_token_turns", [[1, 0, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0, 0]])
    for ends in (None, ends_of(case)):
        one, other = (run(n, case, ends, gamma=0.9, lam=0.7) for n in ("turn_gae", "gae"))
        torch.testing.assert_close(one.advantages, other.advantages, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.returns, other.returns, rtol=1e-12, atol=1e-12)


def test_how_wide_a_hole_is_does_not_matter_to_turns():
    """Two turns, 1 or 3 masked tokens apart, after 0 or 2 of them."""
    one = estimate("turn_gae", [[1, 2, 0, 3]], mask=[[1, 1, 0, 1]], values=matrix([1, 5, 0, 2]), **HALF)
    other = estimate(
        "turn_gae",
        [[NAN, NAN, 1, 2, INF, NAN, NAN, 3]],
        mask=[[0, 0, 1, 1, 0, 0, 0, 1]],
        values=matrix([NAN, NAN, 1, 5, NAN, NAN, INF, 2]),
        **HALF,
    )
    at = [2, 3, 4, 7]
    assert torch.equal(one.advantages, other.advantages[:, at])
    assert torch.equal(one.returns, other.returns[:, at])


# ---- what holds for all of them


def cut_out(case):
    """The case without its holes: every row's valid tokens moved to the left."""
    width = case.response_mask.shape[1]
    lengths = case.response_mask.sum(axis=1)
    moved = [np.zeros(case.response_mask.shape) for _ in range(2)]
    for b, row in enumerate(case.response_mask):
        for x, y in zip(moved, (case.token_level_rewards, case.values), strict=True):
            x[b, : lengths[b]] = y[b, row]
    return cases.make(f"{case.name} cut out", cases.prefix_mask(lengths, width), *moved)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "turn_gae"])
def test_holes_are_no_steps(name):
    """To turn_gae they are what parts two turns; see above."""
    for case, ends in ALL:
        holes, whole = run(name, case, ends), run(name, cut_out(case), ends)
        prefix = torch.tensor(cut_out(case).response_mask)
        for x, y in zip(holes, whole, strict=True):
            torch.testing.assert_close(
                x[torch.tensor(case.response_mask)], y[prefix], rtol=1e-9, atol=1e-9 * scale_of(case)
            )


@pytest.mark.parametrize("name", NAMES)
def test_inputs_stay_as_they_are(name):
    case = cases.BY_NAME["holes"]
    inputs = tensors_of(case, returns.INPUTS[name], torch.float32)
    if name in WITH_VALUES:
        inputs |= {"truncated": torch.ones(6), "bootstrap_values": torch.ones(6)}
    before = {key: (x.clone(), x._version) for key, x in inputs.items()}
    got = rl_estimators.estimate(name, **inputs)
    for key, x in inputs.items():
        assert torch.equal(x, before[key][0]), key
        assert x._version == before[key][1], key
        assert all(out.data_ptr() != x.data_ptr() for out in got), key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equal_advantages_whiten_to_exactly_nothing(name, dtype):
    """One token each, reward 0.7 and value 0.3: the same advantage seven times."""
    inputs = {"token_level_rewards": torch.full((7, 1), 0.7, dtype=dtype), "response_mask": torch.ones(7, 1)}
    if name in WITH_VALUES:
        inputs["values"] = torch.full((7, 1), 0.3, dtype=dtype)
    assert (rl_estimators.estimate(name, **inputs, whiten=True).advantages == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_whitening_leaves_the_returns_alone(name):
    for case, ends in ALL:
        on, off = run(name, case, ends, whiten=True), run(name, case, ends, whiten=False)
        assert torch.equal(on.returns, off.returns), case.name


@pytest.mark.parametrize("name", WITH_VALUES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_value_excludes_its_response(name, bad):
    """Its other values stay as returns, with 0 for the bad one."""
    with collect_metrics() as metrics:
        got = estimate(name, [R, R], values=matrix([2, bad, 8], V))
    alone = estimate(name, [R], values=matrix(V))
    close(got.advantages, [0, 0, 0], alone.advantages[0].tolist())
    close(got.returns, [2, 0, 8], alone.returns[0].tolist())
    assert metrics["excluded_responses"].item() == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_at_all(name, shape):
    inputs = {"token_level_rewards": torch.zeros(shape), "response_mask": torch.zeros(shape)}
    if name in WITH_VALUES:
        last = torch.ones(shape[0])
        inputs |= {"values": torch.zeros(shape), "truncated": last, "bootstrap_values": last}
    assert all(x.shape == shape for x in rl_estimators.estimate(name, **inputs))


OPTIONS = [(name, "gamma", 1.5) for name in NAMES] + [
    ("gae", "lam", -0.1),
    ("decoupled_gae", "lam", 2.0),
    ("decoupled_gae", "critic_lam", -1.0),
    ("length_adaptive_gae", "critic_lam", 1.1),
    ("turn_gae", "lam", 1.1),
]


@pytest.mark.parametrize(("name", "option", "value"), OPTIONS)
def test_an_option_out_of_range_is_refused(name, option, value):
    with pytest.raises(InputError, match=rf"{name}: {option} is {value}, expected a number in \[0, 1\]"):
        estimate(name, [R], values=matrix(V), **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("k_step_td", {"k": 0}, r"k_step_td: k is 0, expected a number in \[1, inf\]"),
        ("k_step_td", {"k": 1.5}, "k_step_td: k is 1.5, expected a whole number"),
        ("k_step_td", {"k": INF}, "k_step_td: k is inf, expected a whole number"),
        ("k_step_td", {"k": NAN}, r"k_step_td: k is nan, expected a number in \[1, inf\]"),
        ("length_adaptive_gae", {"alpha": -1.0}, r"length_adaptive_gae: alpha is -1.0, expected a number in"),
    ],
)
def test_odd_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        estimate(name, [R], values=matrix(V), **options)


# ---- verl


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "lam"), [("td", 0.0), ("mc", 1.0)])
def test_as_verls_gae_without_holes(name, lam):
    """No holes, nothing at padding, nobody truncated: td and mc are verl's gae with lambda 0 and 1.

    In float64, to 1e-8: verl adds 1e-8 to the number of tokens that a mean is divided by.
    """
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    case = cases.BY_NAME["ragged_prefix"]
    inputs = tensors_of(case, returns.INPUTS[name], torch.float64, torch.float64)
    mask = inputs["response_mask"]
    inputs |= {key: x * mask for key, x in inputs.items()}
    theirs = core_algos.compute_gae_advantage_return(**inputs, gamma=0.9, lam=lam)
    ours = rl_estimators.estimate(name, **inputs, gamma=0.9)
    torch.testing.assert_close(ours.advantages, theirs[0] * mask, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.returns, theirs[1] * mask, rtol=1e-12, atol=1e-12)
