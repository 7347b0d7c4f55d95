"""What must hold for every batch, whatever the numbers.

All in float64 with rewards of at most 8 in magnitude and multiples of 1/8. Sums of a few such numbers are exact, so an
undiscounted score or return does not depend on the order of summation; what is discounted or divided is compared at
1e-9, because a spread can be as small as sqrt(1e-8) and magnify rounding (1e-15 * 1e4, times some dozens).
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference.definitions import ESTIMATORS, INPUTS
from reference.losses import AGGREGATIONS, LOSSES, POLICY_LOSSES, TRAINED
from reference.losses import INPUTS as LOSS_INPUTS

import rl_estimators

# the same examples on every run and machine, and no .hypothesis folder
REPEATABLE = settings(
    derandomize=True,
    max_examples=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
EIGHTHS = st.integers(-64, 64).map(lambda n: n / 8)
DISCOUNTS = st.sampled_from([0.0, 0.5, 0.9, 1.0])
NAMES = list(ESTIMATORS)
DISCOUNTED = [name for name in NAMES if name != "grpo"]


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


def both_close(actual, wanted):
    close(actual.advantages, wanted.advantages)
    close(actual.returns, wanted.returns)


@st.composite
def batches(draw, min_rows=1, min_valid=0):
    """Rewards, values, baselines, groups and a mask with holes; NaN or inf at the masked positions."""
    rows, width = draw(st.integers(min_rows, 6)), draw(st.integers(max(1, min_valid), 6))

    def matrix(elements):
        return draw(
            st.lists(st.lists(elements, min_size=width, max_size=width), min_size=rows, max_size=rows)
        )

    mask = torch.tensor(matrix(st.booleans()))
    mask[:, :min_valid] = True
    fill = draw(st.sampled_from([0.0, float("nan"), float("inf"), -float("inf")]))
    tensors = {
        name: torch.tensor(matrix(EIGHTHS), dtype=torch.float64).masked_fill(~mask, fill)
        for name in ("token_level_rewards", "values")
    }
    baselines = draw(st.lists(EIGHTHS, min_size=rows, max_size=rows))
    index = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=rows, max_size=rows))
    return {
        **tensors,
        "response_mask": mask,
        "reward_baselines": torch.tensor(baselines, dtype=torch.float64),
        "index": np.array(index, dtype=object),
    }


def run(name, batch, **options):
    return rl_estimators.estimate(name, **{field: batch[field] for field in INPUTS[name]}, **options)


def take(batch, rows):
    rows = np.asarray(rows, dtype=np.int64)
    return {name: x[rows] if name == "index" else x[torch.from_numpy(rows)] for name, x in batch.items()}


def options_of(name, gamma, lam):
    return {"gae": {"gamma": gamma, "lam": lam}, "grpo": {}}.get(name, {"gamma": gamma})


def last_valid(mask):
    """True at each row's last valid position."""
    from_right = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (from_right == 1)


each = pytest.mark.parametrize("name", NAMES)
discounted = pytest.mark.parametrize("name", DISCOUNTED)


@each
@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS, lam=DISCOUNTS)
def test_finite_and_exactly_zero_off_the_mask(name, batch, gamma, lam):
    for output in run(name, batch, **options_of(name, gamma, lam)):
        assert output.isfinite().all()
        assert (output[~batch["response_mask"]] == 0).all()
        assert output.dtype == torch.float64


@each
@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS)
def test_inputs_are_unchanged(name, batch, gamma):
    before = {key: x.copy() if key == "index" else x.clone() for key, x in batch.items()}
    versions = {key: x._version for key, x in batch.items() if key != "index"}
    run(name, batch, **options_of(name, gamma, 0.9))
    for key, x in batch.items():
        same = (
            (x == before[key]).all()
            if key == "index"
            else torch.equal(x.nan_to_num(), before[key].nan_to_num())
        )
        assert same, key
        assert key == "index" or x._version == versions[key], key


@each
@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS)
def test_outputs_are_not_the_inputs(name, batch, gamma):
    """Writing into the result must not reach the inputs."""
    inputs = [x for key, x in batch.items() if key != "index"]
    for output in run(name, batch, **options_of(name, gamma, 0.9)):
        assert all(output.data_ptr() != x.data_ptr() for x in inputs)
        assert not output.requires_grad


@each
@REPEATABLE
@given(batch=batches(min_rows=2), gamma=DISCOUNTS, data=st.data())
def test_row_permutation(name, batch, gamma, data):
    """Covers groups whose members lie apart as well."""
    order = data.draw(st.permutations(range(len(batch["index"]))))
    options = options_of(name, gamma, 0.9)
    whole, moved = run(name, batch, **options), run(name, take(batch, order), **options)
    both_close(moved, type(whole)(*(x[torch.tensor(order)] for x in whole)))


@each
@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS, data=st.data())
def test_masked_columns_anywhere_change_nothing(name, batch, gamma, data):
    """Right padding and holes alike, filled with NaN."""
    width = batch["response_mask"].shape[1]
    at = torch.tensor(sorted(data.draw(st.permutations(range(width + 3)))[:width]))
    wider = dict(batch)
    for key in ("token_level_rewards", "values", "response_mask"):
        blank = torch.full((len(batch["index"]), width + 3), float("nan")).to(batch[key].dtype)
        blank = torch.zeros_like(blank) if key == "response_mask" else blank
        blank[:, at] = batch[key]
        wider[key] = blank
    options = options_of(name, gamma, 0.9)
    wanted, actual = run(name, batch, **options), run(name, wider, **options)
    both_close(type(actual)(*(x[:, at] for x in actual)), wanted)
    rest = [t for t in range(width + 3) if t not in at.tolist()]
    assert (actual.advantages[:, rest] == 0).all()
    assert (actual.returns[:, rest] == 0).all()


@each
@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS, index=st.sampled_from(["a", "pad"]))
def test_all_masked_rows_change_nothing(name, batch, gamma, index):
    """A padding row of NaN, in a group of its own (as verl's) or in another's."""
    rows = len(batch["index"])
    padded = {
        key: np.append(x, index) if key == "index" else torch.cat([x, torch.full_like(x[:1], float("nan"))])
        for key, x in batch.items()
        if key != "response_mask"
    }
    padded["response_mask"] = torch.cat(
        [batch["response_mask"], torch.zeros_like(batch["response_mask"][:1])]
    )
    options = options_of(name, gamma, 0.9)
    actual = run(name, padded, **options)
    both_close(type(actual)(*(x[:rows] for x in actual)), run(name, batch, **options))
    assert all((x[rows] == 0).all() for x in actual)


@each
@REPEATABLE
@given(
    batch=batches(min_rows=2, min_valid=1),
    gamma=DISCOUNTS,
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    data=st.data(),
)
def test_a_bad_score_is_as_good_as_absent(name, batch, gamma, bad, data):
    """The other rows get what they would get without the row; the row itself gets no advantage."""
    row = data.draw(st.integers(0, len(batch["index"]) - 1))
    column = data.draw(st.sampled_from(batch["response_mask"][row].nonzero().flatten().tolist()))
    rewards = batch["token_level_rewards"].clone()
    rewards[row, column] = bad
    spoiled = {**batch, "token_level_rewards": rewards}
    others = [b for b in range(len(batch["index"])) if b != row]
    options = options_of(name, gamma, 0.9)
    actual = run(name, spoiled, **options)
    both_close(type(actual)(*(x[others] for x in actual)), run(name, take(batch, others), **options))
    assert (actual.advantages[row] == 0).all()
    v = batch["values"][row].where(batch["response_mask"][row], 0.0)
    assert torch.equal(actual.returns[row], v if name == "gae" else torch.zeros_like(v))


@each
@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS)
def test_mask_dtypes_agree(name, batch, gamma):
    """To the last bit."""
    options, mask = options_of(name, gamma, 0.9), batch["response_mask"]
    wanted = run(name, batch, **options)
    for other in (
        mask.int(),
        mask.long(),
        mask.to(torch.uint8),
        mask.float(),
        mask.bfloat16(),
    ):
        actual = run(name, {**batch, "response_mask": other}, **options)
        assert torch.equal(actual.advantages, wanted.advantages), other.dtype
        assert torch.equal(actual.returns, wanted.returns), other.dtype


# ---- shifts


@pytest.mark.parametrize("norm_by_std", [True, False])
@REPEATABLE
@given(batch=batches(), shift=EIGHTHS)
def test_shift_grpo(norm_by_std, batch, shift):
    """A constant added to every score, on whichever token: nothing changes."""
    raised = batch["token_level_rewards"] + shift * last_valid(batch["response_mask"])
    both_close(
        run("grpo", {**batch, "token_level_rewards": raised}, norm_by_std=norm_by_std),
        run("grpo", batch, norm_by_std=norm_by_std),
    )


@REPEATABLE
@given(batch=batches(), shift=EIGHTHS)
def test_shift_reinforce_pp(batch, shift):
    """gamma = 1: a constant on every last valid token raises every G by it; the whitened advantages stay."""
    last = last_valid(batch["response_mask"])
    before = run("reinforce_pp", batch)
    after = run("reinforce_pp", {**batch, "token_level_rewards": batch["token_level_rewards"] + shift * last})
    close(after.advantages, before.advantages)
    close(after.returns, before.returns + shift * batch["response_mask"])


@REPEATABLE
@given(batch=batches(), shift=EIGHTHS, gamma=st.sampled_from([0.0, 0.5, 0.9]))
def test_shift_reinforce_pp_discounted(batch, shift, gamma):
    """c (1 - gamma) on every token and c gamma more on the last: every G rises by c, as with gamma = 1 above."""
    mask = batch["response_mask"].double()  # a bool tensor times a number would be float32
    raised = batch["token_level_rewards"] + shift * (1 - gamma) * mask
    raised += shift * gamma * last_valid(batch["response_mask"]).double()
    before = run("reinforce_pp", batch, gamma=gamma)
    after = run("reinforce_pp", {**batch, "token_level_rewards": raised}, gamma=gamma)
    close(after.returns, before.returns + shift * mask)
    # equal returns may differ by a rounding after the shift: 1e-14 over a spread of 1e-4
    torch.testing.assert_close(after.advantages, before.advantages, rtol=1e-8, atol=1e-8)


def test_shift_of_discounted_terminal_rewards_matters():
    """gamma = 1/2, two tokens against one: G = (1/2, 1), (1) and with 1 added (1, 2), (2): whitened, the same shape.

    Three tokens against one, terminal 1 and 2: G = (1/4, 1/2, 1), (2); with 1 added (1/2, 1, 2), (3). The two
    patterns are no multiples of each other after centring, so REINFORCE++ is not shift invariant with gamma < 1.
    """
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    rewards = torch.tensor([[0, 0, 1], [2, 0, 0]], dtype=torch.float64)
    before, after = (
        rl_estimators.estimate(
            "reinforce_pp", token_level_rewards=rewards + c * last_valid(mask), response_mask=mask, gamma=0.5
        ).advantages
        for c in (0, 1)
    )
    assert (before - after).abs().max() > 0.05


@pytest.mark.parametrize("whiten", [True, False])
@REPEATABLE
@given(batch=batches(), shift=EIGHTHS, lam=DISCOUNTS)
def test_shift_gae(whiten, batch, shift, lam):
    """gamma = 1: a constant on every last reward and on every value leaves all TD errors; returns rise by it."""
    mask = batch["response_mask"]
    raised = {
        **batch,
        "token_level_rewards": batch["token_level_rewards"] + shift * last_valid(mask),
        "values": batch["values"] + shift,
    }
    before = run("gae", batch, gamma=1.0, lam=lam, whiten=whiten)
    after = run("gae", raised, gamma=1.0, lam=lam, whiten=whiten)
    close(after.advantages, before.advantages)
    close(after.returns, before.returns + shift * mask)


@REPEATABLE
@given(batch=batches(), shift=EIGHTHS)
def test_shift_remax(batch, shift):
    """gamma = 1: a constant on score and baseline alike."""
    mask = batch["response_mask"]
    raised = {
        **batch,
        "token_level_rewards": batch["token_level_rewards"] + shift * last_valid(mask),
        "reward_baselines": batch["reward_baselines"] + shift,
    }
    before, after = run("remax", batch), run("remax", raised)
    close(after.advantages, before.advantages)
    close(after.returns, before.returns + shift * mask)


# ---- scales

SCALES = st.sampled_from([0.25, 3.0, 1000.0])


def scaled(batch, a):
    return {
        **batch,
        "token_level_rewards": a * batch["token_level_rewards"],
        "values": a * batch["values"],
        "reward_baselines": a * batch["reward_baselines"],
    }


@REPEATABLE
@given(batch=batches(), a=SCALES)
def test_scale_grpo(batch, a):
    """(a s - a m) / (a std + a epsilon): invariant if epsilon scales along; without the division linear in a."""
    both_close(run("grpo", scaled(batch, a), epsilon=a * 1e-3), run("grpo", batch, epsilon=1e-3))
    close(
        run("grpo", scaled(batch, a), norm_by_std=False).advantages,
        a * run("grpo", batch, norm_by_std=False).advantages,
    )


@REPEATABLE
@given(batch=batches(), a=SCALES, gamma=DISCOUNTS, lam=DISCOUNTS)
def test_scale_without_whitening(batch, a, gamma, lam):
    """gae in rewards and values, remax in rewards and baselines: linear."""
    for name, options in (
        ("gae", {"gamma": gamma, "lam": lam, "whiten": False}),
        ("remax", {"gamma": gamma}),
    ):
        before, after = run(name, batch, **options), run(name, scaled(batch, a), **options)
        close(after.advantages, a * before.advantages)
        close(after.returns, a * before.returns)


@pytest.mark.parametrize("name", ["gae", "reinforce_pp"])
@REPEATABLE
@given(batch=batches(min_rows=2, min_valid=1), a=SCALES)
def test_scale_with_whitening(name, batch, a):
    """Whitening is invariant but for its 1e-8: w = (x - m) / sqrt(v + 1e-8) turns into (x - m) / sqrt(v + 1e-8 / a^2)."""
    raw = run("gae", batch, whiten=False).advantages if name == "gae" else run(name, batch).returns
    variance = raw[batch["response_mask"]].var()
    factor = torch.sqrt((variance + 1e-8) / (variance + 1e-8 / a**2))
    close(run(name, scaled(batch, a)).advantages, factor * run(name, batch).advantages)


# ---- moments


@pytest.mark.parametrize("name", ["gae", "reinforce_pp"])
@REPEATABLE
@given(batch=batches(min_rows=2, min_valid=1), gamma=DISCOUNTS)
def test_whitened_moments(name, batch, gamma):
    """Mean 0 and unbiased variance v / (v + 1e-8) over the valid tokens."""
    mask = batch["response_mask"]
    raw = (
        run("gae", batch, gamma=gamma, lam=0.9, whiten=False).advantages
        if name == "gae"
        else run(name, batch, gamma=gamma).returns
    )
    white = run(name, batch, **options_of(name, gamma, 0.9)).advantages[mask]
    assert white.sum().abs() < 1e-9 * (1 + len(white))
    variance = raw[mask].var()
    assert white.var() == pytest.approx((variance / (variance + 1e-8)).item(), abs=1e-9)


@REPEATABLE
@given(batch=batches(min_rows=2, min_valid=1))
def test_grpo_groups_sum_to_zero(batch):
    """One number per response, the same on all its tokens; over a group they cancel."""
    advantages = run("grpo", batch).advantages
    assert torch.equal(advantages, advantages[:, :1] * batch["response_mask"])
    for uid in set(batch["index"]):
        assert abs(advantages[batch["index"] == uid, 0].sum()) < 1e-9


@REPEATABLE
@given(first=batches(), second=batches())
def test_grpo_groups_do_not_see_each_other(first, second):
    """Two batches with uids of their own, stacked, are estimated as apart. Widths are cut to the smaller."""
    width = min(first["response_mask"].shape[1], second["response_mask"].shape[1])
    parts = []
    for prefix, batch in (("x", first), ("y", second)):
        cut = {key: x[:, :width] for key, x in batch.items() if getattr(x, "ndim", 0) == 2}
        parts.append(
            {**batch, **cut, "index": np.array([prefix + uid for uid in batch["index"]], dtype=object)}
        )
    stacked = {
        key: np.concatenate([p[key] for p in parts]) if key == "index" else torch.cat([p[key] for p in parts])
        for key in first
    }
    close(run("grpo", stacked).advantages, torch.cat([run("grpo", part).advantages for part in parts]))


@REPEATABLE
@given(batch=batches(), names=st.permutations([-3, 2**61, "a", "01", "1"]))
def test_grpo_uids_are_only_names(batch, names):
    renamed = dict(zip("abc", names, strict=False))
    index = np.array([renamed[uid] for uid in batch["index"]], dtype=object)
    assert torch.equal(run("grpo", {**batch, "index": index}).advantages, run("grpo", batch).advantages)


@REPEATABLE
@given(batch=batches(min_valid=2))
def test_grpo_where_a_reward_falls_does_not_matter(batch):
    """Only the sum over a response counts: all of it moved to the first valid token."""
    mask = batch["response_mask"]
    sums = batch["token_level_rewards"].where(mask, 0.0).sum(-1, keepdim=True)
    first = last_valid(mask.flip(-1)).flip(-1)
    both_close(run("grpo", {**batch, "token_level_rewards": sums * first}), run("grpo", batch))


# ---- recursions


@discounted
@REPEATABLE
@given(batch=batches(min_valid=2), gamma=DISCOUNTS)
def test_returns_obey_bellman(name, batch, gamma):
    """G_k = r_k + gamma G_{k+1} along the valid steps (gae: lam = 1)."""
    options = {"gamma": gamma, "lam": 1.0} if name == "gae" else {"gamma": gamma}
    returns = run(name, batch, **options).returns
    for b, mask in enumerate(batch["response_mask"]):
        g, r = returns[b, mask], batch["token_level_rewards"][b, mask]
        close(g, r + gamma * torch.cat([g[1:], torch.zeros(1, dtype=torch.float64)]))


@REPEATABLE
@given(batch=batches(min_valid=2), gamma=DISCOUNTS, lam=DISCOUNTS)
def test_gae_is_a_recursion(batch, gamma, lam):
    """A_k = r_k + gamma V_{k+1} - V_k + gamma lam A_{k+1}; returns = A + V."""
    estimate = run("gae", batch, gamma=gamma, lam=lam, whiten=False)
    nothing = torch.zeros(1, dtype=torch.float64)
    for b, mask in enumerate(batch["response_mask"]):
        a, r, v = (
            estimate.advantages[b, mask],
            batch["token_level_rewards"][b, mask],
            batch["values"][b, mask],
        )
        later_a, later_v = torch.cat([a[1:], nothing]), torch.cat([v[1:], nothing])
        close(a, r + gamma * later_v - v + gamma * lam * later_a)
        close(estimate.returns[b, mask], a + v)


@REPEATABLE
@given(batch=batches(), gamma=DISCOUNTS)
def test_remax_is_returns_less_the_baseline(batch, gamma):
    estimate = run("remax", batch, gamma=gamma)
    baseline = batch["reward_baselines"][:, None] * batch["response_mask"]
    close(estimate.advantages, estimate.returns - baseline)
    close(estimate.returns, run("reinforce_pp", batch, gamma=gamma).returns)


# ---- losses

each_loss = pytest.mark.parametrize("name", LOSSES)
each_mode = pytest.mark.parametrize("mode", AGGREGATIONS)
SOME = settings(REPEATABLE, max_examples=12)  # times 15 pairs of loss and aggregation


@st.composite
def loss_batches(draw, min_rows=1):
    batch = draw(batches(min_rows=min_rows))
    mask, rewards = batch["response_mask"], batch["token_level_rewards"]
    seed = draw(st.integers(0, 2**16))
    draws = torch.randn(6, *mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    fill = rewards[~mask][0].item() if (~mask).any() else 0.0
    names = ("old_log_prob", "log_prob", "advantages", "vpreds", "values", "returns")
    inputs = {name: x.masked_fill(~mask, fill) for name, x in zip(names, draws, strict=True)}
    return {**inputs, "response_mask": mask}


def loss_of(name, batch, **kwargs):
    kind = rl_estimators.policy_loss if name in POLICY_LOSSES else rl_estimators.value_loss
    names = (*LOSS_INPUTS[name], "response_mask")
    return kind(name, **{key: batch[key] for key in names}, **kwargs)[0]


@each_loss
@each_mode
@SOME
@given(batch=loss_batches())
def test_loss_is_finite_and_blind_off_the_mask(name, mode, batch):
    """Finite, gradient exactly 0 at masked positions, inputs unchanged, and what is masked may be anything."""
    leaf = batch[TRAINED[name]].clone().requires_grad_()
    before = {key: x.clone() for key, x in batch.items()}
    loss = loss_of(name, {**batch, TRAINED[name]: leaf}, loss_agg_mode=mode)
    loss.backward()
    mask = batch["response_mask"]
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[~mask] == 0).all()
    assert all(torch.equal(x.nan_to_num(), before[key].nan_to_num()) for key, x in batch.items())
    zeroed = {key: x.masked_fill(~mask, 0.0) for key, x in batch.items() if key != "response_mask"}
    assert torch.equal(loss_of(name, {**zeroed, "response_mask": mask}, loss_agg_mode=mode), loss.detach())


@each_loss
@each_mode
@SOME
@given(batch=loss_batches(min_rows=2), data=st.data())
def test_loss_row_permutation(name, mode, batch, data):
    order = torch.tensor(data.draw(st.permutations(range(len(batch["response_mask"])))))
    moved = {key: x[order] for key, x in batch.items()}
    close(loss_of(name, moved, loss_agg_mode=mode), loss_of(name, batch, loss_agg_mode=mode))


@each_loss
@each_mode
@SOME
@given(batch=loss_batches())
def test_loss_padding(name, mode, batch):
    """Masked columns and rows of NaN change nothing, except the width that seq-mean-token-sum-norm divides by."""
    width = batch["response_mask"].shape[1]
    padded = {
        key: torch.nn.functional.pad(x, (1, 2, 0, 1), value=0 if key == "response_mask" else float("nan"))
        for key, x in batch.items()
    }
    wider = (width + 3) / width if mode == "seq-mean-token-sum-norm" else 1
    close(wider * loss_of(name, padded, loss_agg_mode=mode), loss_of(name, batch, loss_agg_mode=mode))
    fixed = {"loss_agg_mode": mode, "global_batch_info": {"loss_scale_factor": 8}}
    close(loss_of(name, padded, **fixed), loss_of(name, batch, **fixed))


@each_loss
@each_mode
@SOME
@given(batch=loss_batches())
def test_loss_mask_dtypes_agree(name, mode, batch):
    wanted, mask = loss_of(name, batch, loss_agg_mode=mode), batch["response_mask"]
    for other in (
        mask.int(),
        mask.long(),
        mask.to(torch.uint8),
        mask.float(),
        mask.bfloat16(),
    ):
        actual = loss_of(name, {**batch, "response_mask": other}, loss_agg_mode=mode)
        assert torch.equal(actual, wanted), other.dtype


@each_mode
@SOME
@given(batch=loss_batches(), a=SCALES)
def test_ppo_clip_is_homogeneous_in_the_advantages(mode, batch, a):
    more = {**batch, "advantages": a * batch["advantages"]}
    close(
        loss_of("ppo_clip", more, loss_agg_mode=mode, clip_ratio_c=3.0),
        a * loss_of("ppo_clip", batch, loss_agg_mode=mode, clip_ratio_c=3.0),
    )


@each_mode
@SOME
@given(batch=loss_batches())
def test_ppo_clip_on_policy_is_the_policy_gradient(mode, batch):
    """Ratio 1 everywhere: the loss is minus the aggregated advantage, mse with targets 0 has the same aggregation."""
    on = {**batch, "log_prob": batch["old_log_prob"]}
    positive = {**on, "advantages": 0.5 * batch["vpreds"] ** 2}
    zero = {**batch, "returns": torch.zeros_like(batch["returns"])}
    close(loss_of("ppo_clip", positive, loss_agg_mode=mode), -loss_of("mse", zero, loss_agg_mode=mode))


@SOME
@given(batch=loss_batches(), mode=st.sampled_from(AGGREGATIONS))
def test_clipped_value_loss_is_no_smaller_than_mse(batch, mode):
    """A maximum over the plain term; with a wide range it is that term."""
    plain = loss_of("mse", batch, loss_agg_mode=mode)
    assert loss_of("clipped", batch, loss_agg_mode=mode) >= plain - 1e-12
    close(loss_of("clipped", batch, loss_agg_mode=mode, cliprange_value=1e3), plain)


@SOME
@given(batch=loss_batches(), mode=st.sampled_from(AGGREGATIONS))
def test_dual_clip_never_costs_more(batch, mode):
    assume(batch["response_mask"].any())
    plain = loss_of("ppo_clip", batch, loss_agg_mode=mode)
    assert loss_of("ppo_clip", batch, loss_agg_mode=mode, clip_ratio_c=1.5) <= plain + 1e-12
    close(loss_of("ppo_clip", batch, loss_agg_mode=mode, clip_ratio_c=1e9), plain)
