"""The policy losses beside ppo_clip: against the reference, by hand, by what must not matter, and against verl."""

import importlib.metadata
import math
from itertools import cycle

import numpy as np
import pytest
import torch
from reference import cases, losses
from reference import policy_losses as reference
from reference.tensors import MASKS, arrays_of, as_tensor, epsilon_of, tensors_of

import rl_estimators
from rl_estimators import policy_losses
from rl_estimators.aggregation import MODES
from rl_estimators.errors import InputError
from rl_estimators.policy_losses.ratio import row_mean

NAMES = sorted(reference.LOSSES)
PER_BATCH = ("clip_cov", "kl_cov")  # they choose tokens among those of the batch at hand
VARIANTS = [
    ("reinforce", {}),
    ("gpg", {}),
    ("importance_sampling", {}),
    ("gspo", {}),
    ("gspo", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1}),
    ("gspo", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1, "token_level": True}),
    ("cispo", {}),
    ("cispo", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3}),
    ("gmpo", {}),
    ("gmpo", {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2}),
    ("sapo", {}),
    ("sapo", {"tau_pos": 0.5, "tau_neg": 3.0}),
    ("clip_cov", {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 2.0}),
    ("clip_cov", {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.0, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2}),
    ("kl_cov", {}),
    ("kl_cov", {"kl_cov_ratio": 0.3, "ppo_kl_coef": 0.5}),
]
FIELDS = ("old_log_prob", "log_prob", "advantages", "response_mask")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def label(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "default"


def run(name, inputs, **options):
    """Loss, gradient by log_prob, and metrics."""
    leaf = inputs["log_prob"].clone().requires_grad_()
    loss, metrics = rl_estimators.policy_loss(name, **{**inputs, "log_prob": leaf}, **options)
    loss.backward()
    return loss.detach(), leaf.grad, metrics


def by_reference(name, arrays, mode, weights=1.0, info=None, **options):
    """The same from the reference, and how large the numbers were that it added up."""
    old, new, advantages, mask = (arrays[field] for field in FIELDS)
    loss, pull = reference.LOSSES[name](old, new, new, advantages, mask, **options)
    weights = np.broadcast_to(weights, mask.shape)
    share = losses.weights(mask, mode, info)
    sizes = np.where(mask, np.abs(loss) + np.abs(advantages) + 1, 0)
    value = losses.aggregate(loss * np.where(mask, weights, 0), mask, mode, info)
    return value, np.sum(share * sizes), *pull(share * np.where(mask, weights, 0))


def batch(name="plain", mask=cases.HOLES, dtype=torch.float64, **kwargs):
    return tensors_of(cases.make_loss(name, mask, **kwargs), FIELDS, dtype)


def by_hand(name, ratios, advantages, mask=None, old=-1.0, **options):
    """One row or several, given as ratios; token-sum unless said otherwise."""
    new = torch.tensor(ratios, dtype=torch.float64).log() + old
    inputs = {
        "old_log_prob": torch.full_like(new, old),
        "log_prob": new,
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "response_mask": torch.ones_like(new) if mask is None else torch.tensor(mask),
    }
    loss, slope, metrics = run(name, inputs, **{"loss_agg_mode": "token-sum", **options})
    return loss.item(), slope, metrics


def close(actual, wanted):
    torch.testing.assert_close(actual, torch.as_tensor(wanted, dtype=actual.dtype), rtol=1e-12, atol=1e-13)


# ---- the reference


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", cases.LOSS_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_value_and_gradient(name, options, case, dtype):
    """An element costs tens of roundings, each of the numbers' size; sums over up to 400 of them a few more."""
    arrays, eps = arrays_of(case, FIELDS, dtype), epsilon_of(dtype)
    for mode, mask_dtype in zip(MODES, cycle(MASKS.values()), strict=False):
        inputs = tensors_of(case, FIELDS, dtype, mask_dtype)
        loss, slope, metrics = run(name, inputs, loss_agg_mode=mode, **options)
        value, size, gradient, sizes = by_reference(name, arrays, mode, **options)
        assert (loss.shape, loss.dtype) == ((), dtype)
        assert abs(loss.item() - value) <= 300 * eps * size, mode
        assert (np.abs(slope.double().numpy() - gradient) <= 300 * eps * sizes).all(), mode
        assert (slope[~torch.tensor(case.response_mask)] == 0).all()
        assert all(m.shape == () and not m.requires_grad and m.isfinite() for m in metrics.values()), metrics


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_slope_of_the_reference(name, options, mode):
    """Central differences, the stopped parts held fixed: the reference's gradients are themselves checked."""
    arrays = arrays_of(cases.make_loss("slope_of_policy_losses", cases.HOLES), FIELDS, torch.float64)
    old, new, advantages, mask = (arrays[field] for field in FIELDS)

    def value(x):
        loss, _ = reference.LOSSES[name](old, x, new, advantages, mask, **options)
        return losses.aggregate(loss, mask, mode)

    gradient = by_reference(name, arrays, mode, **options)[2]
    for b, t in np.ndindex(mask.shape):
        step = np.zeros(mask.shape)
        step[b, t] = 1e-6
        assert (value(new + step) - value(new - step)) / 2e-6 == pytest.approx(gradient[b, t], abs=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_importance_weights_of_the_rollout(name, options, mode):
    """A factor per token; gmpo's is the response's geometric mean. NaN stands at masked positions."""
    case = cases.make_loss("weighted", np.vstack([cases.HOLES, np.zeros((1, 7), bool)]))
    arrays = arrays_of(case, FIELDS, torch.float64)
    weights = np.exp(cases.rng_of("weights").normal(size=case.response_mask.shape))
    for_rows = weights
    if name == "gmpo":
        logs, at = np.where(case.response_mask, np.log(weights), 0), case.response_mask
        for_rows = np.exp(logs.sum(1) / np.maximum(at.sum(1), 1))[:, None]
    value, _, gradient, _ = by_reference(name, arrays, mode, for_rows, **options)
    given = as_tensor(np.where(case.response_mask, weights, np.nan), torch.float64)
    inputs = tensors_of(case, FIELDS, torch.float64)
    loss, slope, _ = run(name, inputs, loss_agg_mode=mode, rollout_is_weights=given, **options)
    close(loss, value)
    close(slope, gradient)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_counts_of_a_global_batch(name, options, mode):
    info = {"dp_size": 4, "batch_num_tokens": 37, "global_batch_size": 11, "loss_scale_factor": 13}
    case = cases.make_loss("counts", cases.HOLES)
    value, _, gradient, _ = by_reference(
        name, arrays_of(case, FIELDS, torch.float64), mode, info=info, **options
    )
    inputs = tensors_of(case, FIELDS, torch.float64)
    loss, slope, _ = run(name, inputs, loss_agg_mode=mode, global_batch_info=info, **options)
    close(loss, value)
    close(slope, gradient)


# ---- by hand


def test_reinforce_by_hand():
    """Log-probabilities -1 (ratio 1) and -1 + ln 2: L = -A x; the slope is -A."""
    loss, slope, metrics = by_hand("reinforce", [[1.0, 2.0]], [[3.0, -2.0]])
    assert loss == pytest.approx(3 * 1 + 2 * (math.log(2) - 1))
    close(slope, [[-3.0, 2.0]])
    assert metrics["ppo_kl"].item() == pytest.approx(-math.log(2) / 2)


def test_gpg_by_hand():
    """As reinforce, and a mean over the three tokens: -(1 + 1) * (-1) / 3 and -2 * (-1) / 3."""
    loss, slope, _ = by_hand(
        "gpg",
        [[1.0, 1.0], [1.0, 9.0]],
        [[1.0, 1.0], [2.0, 9.0]],
        [[1, 1], [1, 0]],
        loss_agg_mode="token-mean",
    )
    assert loss == pytest.approx(4 / 3)
    close(slope, [[-1 / 3, -1 / 3], [-2 / 3, 0.0]])


def test_importance_sampling_by_hand():
    """Nothing is clipped: ratios 3 and 1/2 at advantages 2 and -4 give -6 + 2, and the same as slopes."""
    loss, slope, metrics = by_hand("importance_sampling", [[3.0, 0.5]], [[2.0, -4.0]])
    assert loss == pytest.approx(-6 + 2)
    close(slope, [[-6.0, 2.0]])
    assert metrics["ratio_mean"].item() == pytest.approx(1.75)


def test_gspo_by_hand():
    """Ratios 4 and 1 have the geometric mean 2; the hole's 100 has no part in it.

    Advantage 1, clip at 3: L = -2 on both tokens, their sum -4. ds/dx = s / 2 = 1 for each, so each slope is -2.
    Advantage 1, clip at 1.5: L = -1.5 on both, slopes 0. Advantage -1, clip at 1.5: L = 2, nothing replaced.
    """
    ratios, mask = [[4.0, 100.0, 1.0]], [[1, 0, 1]]
    loss, slope, metrics = by_hand("gspo", ratios, [[1.0, 9, 1.0]], mask, clip_ratio_high=2.0)
    assert loss == pytest.approx(-4)
    close(slope, [[-2.0, 0.0, -2.0]])
    assert metrics["pg_clipfrac"] == 0
    loss, slope, metrics = by_hand("gspo", ratios, [[1.0, 9, 1.0]], mask, clip_ratio_high=0.5)
    assert (loss, slope.abs().sum().item(), metrics["pg_clipfrac"].item()) == (pytest.approx(-3), 0, 1)
    loss, slope, _ = by_hand("gspo", ratios, [[-1.0, 9, -1.0]], mask, clip_ratio_high=0.5)
    assert loss == pytest.approx(4)
    close(slope, [[2.0, 0.0, 2.0]])


def test_gspo_token_by_hand():
    """Advantages 1 and 3 at s = 2: token t's slope is -A_t s; the sequence form gives both the mean, -(1 + 3) * 2 / 2."""
    common = {"ratios": [[4.0, 1.0]], "advantages": [[1.0, 3.0]], "clip_ratio_high": 2.0}
    loss, slope, _ = by_hand("gspo", **common, token_level=True)
    assert loss == pytest.approx(-8)
    close(slope, [[-2.0, -6.0]])
    loss, slope, _ = by_hand("gspo", **common)
    assert loss == pytest.approx(-8)
    close(slope, [[-4.0, -4.0]])


def test_cispo_by_hand():
    """Old log-probability -1. Ratios 3, 1/2, 1 with weights 1.2, 0.5, 1: L = -weight * A * x, slope -weight * A."""
    loss, slope, metrics = by_hand("cispo", [[3.0, 0.5, 1.0]], [[1.0, -2.0, 1.0]])
    wanted = -1.2 * (math.log(3) - 1) + 0.5 * 2 * (math.log(0.5) - 1) + 1
    assert loss == pytest.approx(wanted)
    close(slope, [[-1.2, 1.0, -1.0]])
    assert metrics["pg_clipfrac"].item() == pytest.approx(1 / 3)
    _, slope, _ = by_hand("cispo", [[3.0, 0.5, 1.0]], [[1.0, -2.0, 1.0]], clip_ratio_low=0.2)
    close(slope, [[-1.2, 1.6, -1.0]])


def test_gmpo_by_hand():
    """Clip at 2 and 1/2 (ln 2 nats). Advantage 3, ratios 8 and 1/8: the first counts as 2, so g = sqrt(2 / 8) = 1/2.

    L = -3/2 on each of two tokens. Only the second moves g, by g / 2 = 1/4: slope -3 * 1/4 * 2 tokens.
    Advantage -3: the second counts as 1/2, g = sqrt(8 / 2) = 2, L = 6 each; the first moves it: 3 * 2 / 2 * 2.
    """
    clip = {"clip_ratio_low": math.log(2), "clip_ratio_high": math.log(2)}
    loss, slope, metrics = by_hand("gmpo", [[8.0, 0.125]], [[3.0, 3.0]], **clip)
    assert loss == pytest.approx(-3)
    close(slope, [[0.0, -1.5]])
    assert (metrics["pg_clipfrac"].item(), metrics["pg_clipfrac_lower"].item()) == (0.5, 0)
    loss, slope, metrics = by_hand("gmpo", [[8.0, 0.125]], [[-3.0, -3.0]], **clip)
    assert loss == pytest.approx(12)
    close(slope, [[6.0, 0.0]])
    assert (metrics["pg_clipfrac"].item(), metrics["pg_clipfrac_lower"].item()) == (0, 0.5)


def test_gmpo_weight_zero_takes_the_response_out():
    weights = torch.tensor([[0.0, 2.0], [4.0, 1.0]])
    loss, slope, _ = by_hand("gmpo", [[1.0, 1.0]] * 2, [[1.0, 1.0]] * 2, rollout_is_weights=weights)
    assert loss == pytest.approx(-4)  # sqrt(4 * 1) = 2 on two tokens
    close(slope, [[0.0, 0.0], [-2.0, -2.0]])


def test_sapo_by_hand():
    """tau = 2 and advantage 1, ratio 1: sigmoid(0) = 1/2, L = -(4/2)/2 = -1, slope -1, the gate's largest.

    Ratio 2: sigmoid(2), slope -4 S (1 - S) * 2. At advantage -1, tau = 1: +4 sigmoid(1), slope 4 S (1 - S) * 2.
    """

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    loss, slope, metrics = by_hand("sapo", [[1.0, 2.0, 2.0]], [[1.0, 1.0, -1.0]], tau_pos=2.0, tau_neg=1.0)
    two, one = sigmoid(2), sigmoid(1)
    assert loss == pytest.approx(-1 - 2 * two + 4 * one)
    close(slope, [[-1.0, -8 * two * (1 - two), 8 * one * (1 - one)]])
    assert metrics["gate_slope"].item() == pytest.approx(
        (1 + 4 * two * (1 - two) + 4 * one * (1 - one)) / 3, rel=1e-6
    )


# Log-probabilities -1, -2, -3, -6 with mean -3, advantages 3, 1, -1, -3 with mean 0: the products are
# 2 * 3 = 6, 1 * 1 = 1, 0 * -1 = 0, -3 * -3 = 9. All ratios are 1 when old = new.
COV = {
    "old_log_prob": torch.tensor([[-1.0, -2.0], [-3.0, -6.0]], dtype=torch.float64),
    "log_prob": torch.tensor([[-1.0, -2.0], [-3.0, -6.0]], dtype=torch.float64),
    "advantages": torch.tensor([[3.0, 1.0], [-1.0, -3.0]], dtype=torch.float64),
    "response_mask": torch.ones(2, 2),
}


def test_clip_cov_by_hand():
    """Of 6, 1, 0, 9 only 6 lies in [2, 8]: its loss -3 is gone and the others stay, 4 being the denominator."""
    loss, slope, metrics = run("clip_cov", COV, clip_cov_lb=2.0, clip_cov_ub=8.0)
    assert loss.item() == (0 - 1 + 1 + 3) / 4
    assert slope.tolist() == [[0.0, -0.25], [0.25, 0.75]]
    assert (metrics["cov_frac"].item(), metrics["pg_clipfrac"].item()) == (0.25, 0)


def test_clip_cov_takes_the_ends_of_the_interval():
    _, slope, _ = run("clip_cov", COV, clip_cov_ratio=1.0, clip_cov_lb=1.0, clip_cov_ub=6.0)
    assert slope.tolist() == [[0.0, 0.0], [0.25, 0.75]]


def test_clip_cov_passes_by_what_the_clip_replaced():
    """The token of covariance near 6 has ratio e^3: clipped at 2, so it is no candidate, and it is constant anyway."""
    old = COV["old_log_prob"] - torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    loss, slope, metrics = run("clip_cov", {**COV, "old_log_prob": old}, clip_cov_lb=2.0, clip_cov_ub=8.0)
    assert loss.item() == (-6 - 1 + 1 + 3) / 4
    assert slope.tolist() == [[0.0, -0.25], [0.25, 0.75]]
    assert (metrics["cov_frac"].item(), metrics["pg_clipfrac"].item()) == (0, 0.25)


def test_kl_cov_by_hand():
    """All log-ratios are 0.5. Half of four tokens, those of 9 and 6, pay 2 * 0.5 and get the slope 2."""
    inputs = {**COV, "old_log_prob": COV["old_log_prob"] - 0.5}
    loss, slope, metrics = run("kl_cov", inputs, kl_cov_ratio=0.5, ppo_kl_coef=2.0, loss_agg_mode="token-sum")
    w = math.exp(0.5)
    assert loss.item() == pytest.approx((-3 - 1 + 1 + 3) * w + 2 * 1.0)
    close(slope, [[-3 * w + 2, -w], [w, 3 * w + 2]])
    assert metrics["cov_frac"].item() == 0.5


def test_kl_cov_takes_the_earlier_of_equals():
    """Equal advantages make every covariance exactly 0, in fp32 too; at least one token is taken, the first valid."""
    inputs = {
        "old_log_prob": torch.tensor([[-9.0, -0.3, -0.7], [-0.1, -0.9, -0.2]]),
        "log_prob": torch.tensor([[-1.0, -0.4, -0.8], [-0.2, -1.0, -0.3]]),
        "advantages": torch.full((2, 3), 0.7),
        "response_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    _, with_penalty, metrics = run("kl_cov", inputs, loss_agg_mode="token-sum")
    _, without, _ = run("importance_sampling", inputs, loss_agg_mode="token-sum")
    torch.testing.assert_close(with_penalty - without, torch.tensor([[0.0, -1, 0], [0, 0, 0]]))
    assert metrics["cov_frac"].item() == pytest.approx(0.2)


def test_kl_cov_charges_nothing_for_an_infinite_log_ratio_elsewhere():
    """A token that has become impossible keeps a finite loss, -e^-20 A, as long as the penalty is not its own."""
    inputs = {**COV, "log_prob": COV["log_prob"].clone()}
    inputs["log_prob"][0, 0] = -math.inf
    loss, slope, _ = run("kl_cov", inputs, kl_cov_ratio=0)
    other, expected, _ = run("importance_sampling", inputs)
    assert loss.isfinite()
    assert loss.item() == other.item()
    assert slope.tolist() == expected.tolist()


# ---- clip_cov's draw


def drawn(seed, width=40, share=0.25, rows=5, **options):
    """Which tokens have lost their gradient: every token is a candidate, advantages are never 0."""
    inputs = batch("drawn", np.ones((rows, 40), bool), log_ratio=0.0)
    wide = {name: torch.nn.functional.pad(tensor, (0, width - 40)) for name, tensor in inputs.items()}
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    _, slope, metrics = run(
        "clip_cov", wide, generator=generator, clip_cov_ratio=share, clip_cov_lb=-100.0, clip_cov_ub=100.0, **options
    )  # fmt: skip
    return (slope == 0)[:, :40], metrics


def test_the_draw_has_the_asked_number_of_tokens():
    """A quarter of 200 valid tokens; 0.0199 * 200 = 3.98 is rounded down, 0.001 * 200 up to one; 0 draws none."""
    for share, number in ((0.25, 50), (0.0199, 3), (0.001, 1), (0.0, 0), (1.0, 200)):
        chosen, metrics = drawn(0, share=share)
        assert chosen.sum() == number
        assert metrics["cov_frac"].item() == pytest.approx(number / 200)


def test_the_draw_follows_the_generator_and_not_the_padding():
    chosen, _ = drawn(1)
    assert torch.equal(chosen, drawn(1)[0])
    assert torch.equal(chosen, drawn(1, width=57)[0])
    assert not torch.equal(chosen, drawn(2)[0])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(chosen, drawn(None)[0])


def test_the_draw_is_uniform():
    """200 tokens, a quarter each time: in 300 draws each is taken 75 times, give or take 5 deviations of 7.5."""
    generator = torch.Generator().manual_seed(3)
    inputs = batch("drawn", np.ones((5, 40), bool), log_ratio=0.0)
    interval = {"clip_cov_ratio": 0.25, "clip_cov_lb": -100.0, "clip_cov_ub": 100.0}
    times = sum(run("clip_cov", inputs, generator=generator, **interval)[1] == 0 for _ in range(300))
    assert (times - 75).abs().max() < 37.5
    assert times.sum() == 300 * 50


# ---- identities


@pytest.mark.parametrize("mode", MODES)
def test_gspo_and_its_token_form_agree_where_advantages_do(mode):
    inputs = batch()
    inputs["advantages"] = inputs["advantages"][:, 1:2].expand(-1, 7)
    options = {"loss_agg_mode": mode, "clip_ratio_low": 0.1, "clip_ratio_high": 0.1}
    for a, b in zip(
        run("gspo", inputs, **options)[:2], run("gspo", inputs, token_level=True, **options)[:2], strict=True
    ):
        close(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_on_responses_of_one_token(mode):
    """A response's ratio is its token's: gspo is ppo_clip; and gmpo in its own range is importance sampling."""
    inputs = batch("one_token_each", np.ones((6, 1), bool))
    clip = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "loss_agg_mode": mode}
    for name, options, other, others in (
        ("gspo", clip, "ppo_clip", clip),
        ("gspo", {**clip, "token_level": True}, "ppo_clip", clip),
        ("gmpo", {**clip, "clip_ratio_low": 9, "clip_ratio_high": 9}, "importance_sampling", {"loss_agg_mode": mode}),
    ):  # fmt: skip
        for a, b in zip(run(name, inputs, **options)[:2], run(other, inputs, **others)[:2], strict=True):
            close(a, b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "options", "other", "others"),
    [
        ("gpg", {}, "reinforce", {}),
        ("kl_cov", {"ppo_kl_coef": 0.0}, "importance_sampling", {}),
        ("importance_sampling", {}, "ppo_clip", {"clip_ratio_low": 1.0, "clip_ratio_high": 1e9}),
        ("clip_cov", {"clip_cov_lb": 1e9, "clip_cov_ub": 1e9, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2}, "ppo_clip", {}),
    ],
)  # fmt: skip
def test_what_it_comes_down_to(name, options, other, others, mode):
    inputs = batch()
    for a, b in zip(
        run(name, inputs, loss_agg_mode=mode, **options)[:2],
        run(other, inputs, loss_agg_mode=mode, **others)[:2],
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n, o in VARIANTS if n not in PER_BATCH]
    + [("kl_cov", {}), ("clip_cov", {"clip_cov_lb": 4.5})],
    ids=label,
)
def test_on_policy_each_is_the_policy_gradient(name, options, mode):
    """At ratio 1 nothing is clipped or gated: -A each, for gspo and gmpo where a response has one advantage."""
    inputs = batch(log_ratio=0.0)
    inputs["advantages"] = inputs["advantages"][:, 1:2].expand(-1, 7)
    close(
        run(name, inputs, loss_agg_mode=mode, **options)[1], run("reinforce", inputs, loss_agg_mode=mode)[1]
    )


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("reinforce", "seq-mean-token-sum"), ("gspo", "seq-mean-token-mean"), ("gmpo", "seq-mean-token-mean")),
        *(("sapo", "seq-mean-token-mean"), ("cispo", "token-mean"), ("gpg", "token-mean")),
        *(("importance_sampling", "token-mean"), ("clip_cov", "token-mean"), ("kl_cov", "token-mean")),
    ],
)  # fmt: skip
def test_the_functions_default_aggregation_is_the_papers(name, mode):
    inputs, function = batch(), getattr(policy_losses, name)
    never = {"clip_cov_lb": 9.0, "clip_cov_ub": 9.0} if name == "clip_cov" else {}  # two draws would differ
    assert function(**inputs, **never)[0] == function(**inputs, **never, loss_agg_mode=mode)[0]


# ---- what must not matter


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e4])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_garbage_at_masked_positions_does_not_matter(name, options, garbage):
    mask = np.vstack([cases.HOLES, np.zeros((1, 7), dtype=bool)])
    clean = batch("garbage", mask)
    spoiled = batch("garbage", mask, fill=garbage)
    for mode in MODES:
        wanted = run(name, clean, loss_agg_mode=mode, **options)
        actual = run(name, spoiled, loss_agg_mode=mode, **options)
        assert torch.equal(actual[0], wanted[0])
        assert torch.equal(actual[1], wanted[1])
        assert actual[2] == wanted[2]


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if mode != "seq-mean-token-sum-norm"]
)  # that counts T
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_holes_may_be_cut_out(name, options, mode):
    inputs, mask = batch(), torch.tensor(cases.HOLES)
    packed = {field: torch.zeros_like(tensor) for field, tensor in inputs.items()}
    short = torch.arange(7) < mask.sum(1, keepdim=True)
    for field, tensor in inputs.items():
        packed[field][short] = tensor[mask]
    a, b = (run(name, given, loss_agg_mode=mode, **options) for given in (inputs, packed))
    close(a[0], b[0])
    close(a[1][mask], b[1][short])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in PER_BATCH])
def test_micro_batches_add_up(name, mode):
    """Rows in parts of 1, 3, 2 and one of padding alone, with the whole batch's counts."""
    inputs = batch("micro", np.vstack([cases.HOLES, np.zeros((1, 7), bool)]), fill=math.nan)
    whole, whole_slope, _ = run(name, inputs, loss_agg_mode=mode)
    counts = {"batch_num_tokens": int(cases.HOLES.sum()), "global_batch_size": 6}
    total, slopes = 0.0, []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 7)):
        part = {field: tensor[rows] for field, tensor in inputs.items()}
        loss, slope, _ = run(name, part, loss_agg_mode=mode, global_batch_info=counts)
        total, slopes = total + loss, [*slopes, slope]
    close(total, whole)
    close(torch.cat(slopes), whole_slope)


@pytest.mark.parametrize("name", PER_BATCH)
def test_micro_batches_choose_for_themselves(name):
    """As documented: four micro-batches of one response choose at least one token each, the whole batch one in all."""
    inputs = batch("choosing", np.ones((4, 10), bool))
    options = {"clip_cov_lb": -100.0, "clip_cov_ub": 100.0} if name == "clip_cov" else {}
    assert run(name, inputs, **options)[2]["cov_frac"].item() == pytest.approx(1 / 40)
    for row in range(4):
        part = {field: tensor[row : row + 1] for field, tensor in inputs.items()}
        assert run(name, part, **options)[2]["cov_frac"].item() == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("name", "off", "plain"),
    [
        ("kl_cov", {"kl_cov_ratio": 0}, "importance_sampling"),
        ("clip_cov", {"clip_cov_ratio": 0.0, "clip_cov_lb": -100.0, "clip_cov_ub": 100.0}, "importance_sampling"),
    ],
)  # fmt: skip
def test_a_share_of_0_chooses_nothing(name, off, plain):
    """What is left is the surrogate without a clip: on-policy ratios of 1 lie within clip_cov's [0, 2]."""
    inputs = batch("choosing", np.ones((4, 10), bool))
    inputs["old_log_prob"] = inputs["log_prob"].clone()
    loss, slope, metrics = run(name, inputs, **off)
    assert metrics["cov_frac"] == 0
    wanted_loss, wanted_slope, _ = run(plain, inputs)
    close(loss, wanted_loss)
    close(slope, wanted_slope)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 5)])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_without_any_valid_token(name, options, shape):
    inputs = {field: torch.full(shape, math.nan) for field in FIELDS[:3]}
    inputs["response_mask"] = torch.zeros(shape)
    weights = torch.full(shape, math.nan)
    for mode in MODES:
        loss, slope, metrics = run(
            name, inputs, loss_agg_mode=mode, rollout_is_weights=weights,
            global_batch_info={"batch_num_tokens": 9, "global_batch_size": 3}, **options,
        )  # fmt: skip
        assert loss == 0
        assert torch.equal(slope, torch.zeros(shape))
        assert all(metric == 0 for metric in metrics.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_half_precision_is_computed_in_fp32(name, options, dtype):
    low = batch(dtype=dtype)
    up = {field: tensor.float() if field != "response_mask" else tensor for field, tensor in low.items()}
    actual, wanted = run(name, low, **options), run(name, up, **options)
    assert actual[0].dtype == torch.float32
    assert torch.equal(actual[0], wanted[0])
    assert torch.equal(actual[1], wanted[1].to(dtype))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_only_the_policy_in_training_gets_a_gradient(name, options):
    inputs = batch()
    others = {field: inputs[field].requires_grad_() for field in ("old_log_prob", "advantages")}
    weights = torch.ones(inputs["log_prob"].shape, requires_grad=True)
    before = {field: tensor.detach().clone() for field, tensor in inputs.items()}
    _, slope, metrics = run(name, inputs, rollout_is_weights=weights, **options)
    assert slope.abs().sum() > 0
    assert [tensor.grad for tensor in (*others.values(), weights)] == [None] * 3
    assert not any(metric.requires_grad for metric in metrics.values())
    assert all(torch.equal(inputs[field], before[field]) for field in FIELDS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_nothing_is_read_back_from_the_device(name, options, mode):
    """Tensors on "meta" have no values to read: an .item() or a test on a value would raise."""
    inputs = {field: tensor.to("meta") for field, tensor in batch().items()}
    weights = torch.empty_like(inputs["log_prob"])
    loss, slope, metrics = run(name, inputs, rollout_is_weights=weights, loss_agg_mode=mode, **options)
    assert {tensor.device.type for tensor in (loss, slope, *metrics.values())} == {"meta"}


def test_a_response_far_from_its_old_policy_does_not_overflow():
    """Log-ratios of 200 at advantage -1: the ratio is held at e^20, and its gradient is 0."""
    inputs = {
        "old_log_prob": torch.full((1, 2), -200.0),
        "log_prob": torch.zeros(1, 2),
        "advantages": torch.full((1, 2), -1.0),
        "response_mask": torch.ones(1, 2),
    }
    for name, options in (
        ("gspo", {}),
        ("gspo", {"token_level": True}),
        ("gmpo", {}),
        ("importance_sampling", {}),
    ):
        loss, slope, _ = run(name, inputs, **options)
        assert loss.item() == pytest.approx(math.exp(20), rel=1e-6)
        assert slope.tolist() == [[0.0, 0.0]]


def test_the_mean_of_a_response_without_valid_tokens_is_0():
    """Means 2 and 0; NaN stands where the mask is false."""
    x = torch.tensor([[1.0, math.nan, 3.0], [math.nan] * 3])
    assert row_mean(x, torch.tensor([[True, False, True], [False] * 3])).tolist() == [[2.0], [0.0]]


# ---- messages


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"loss_agg_mode": "mean"}, "loss_agg_mode is 'mean', expected one of") for name in NAMES),
        *((name, {"global_batch_info": {"dp": 2}}, "a key of global_batch_info is 'dp'") for name in NAMES),
        ("gspo", {"clip_ratio_low": 1.5}, r"gspo: clip_ratio_low is 1.5, expected a number in \[0, 1\]"),
        ("gspo", {"clip_ratio_high": -1}, r"gspo: clip_ratio_high is -1, expected a number in \[0, inf\]"),
        ("cispo", {"clip_ratio_low": 5.0}, r"cispo: clip_ratio_low is 5.0, expected a number in \[0, 1\]"),
        ("cispo", {"clip_ratio_high": -1}, r"cispo: clip_ratio_high is -1, expected a number in \[0, inf\]"),
        ("gmpo", {"clip_ratio_low": -0.4}, r"gmpo: clip_ratio_low is -0.4, expected a number in \[0, inf\]"),
        ("gmpo", {"clip_ratio_high": math.nan}, r"gmpo: clip_ratio_high is nan, expected a number in \[0, inf\]"),
        ("sapo", {"tau_pos": 0.0}, r"sapo: tau_pos is 0.0, expected a number in \[1e-06, inf\]"),
        ("sapo", {"tau_neg": -1.0}, r"sapo: tau_neg is -1.0, expected a number in \[1e-06, inf\]"),
        ("clip_cov", {"clip_cov_ratio": 2}, r"clip_cov: clip_cov_ratio is 2, expected a number in \[0, 1\]"),
        ("clip_cov", {"clip_ratio_low": 2}, r"clip_cov: clip_ratio_low is 2, expected a number in \[0, 1\]"),
        ("clip_cov", {"clip_ratio_high": -2}, r"clip_cov: clip_ratio_high is -2, expected a number in \[0, inf\]"),
        ("clip_cov", {"clip_cov_ub": 0.5}, r"clip_cov: clip_cov_ub is 0.5, expected a number in \[1, inf\]"),
        ("clip_cov", {"clip_cov_lb": "1"}, "clip_cov: clip_cov_lb is '1', expected a number"),
        ("clip_cov", {"generator": 0}, r"clip_cov: generator is 0, expected a torch.Generator: torch.Generator\(\).man"),
        ("kl_cov", {"kl_cov_ratio": -1}, r"kl_cov: kl_cov_ratio is -1, expected a number in \[0, 1\]"),
        ("kl_cov", {"ppo_kl_coef": -1}, r"kl_cov: ppo_kl_coef is -1, expected a number in \[0, inf\]"),
        ("gspo", {"x": 1}, "gspo has no option 'x'. Its options: .*global_batch_info=None.*; optional inputs: rollout_is_weights"),
        ("gspo", {"token_levels": True}, "gspo has no option 'token_levels'. Did you mean 'token_level'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        run(name, batch(), **options)


# ---- verl


def verl(function):
    """Needs verl, whose imports warn about things that are none of ours."""
    return pytest.mark.verl(pytest.mark.filterwarnings("ignore")(function))


def verl_run(name, inputs, mode="token-mean", weights=None, policy_loss=None, info=None, **fields):
    """verl's function of that name: loss, gradient, metrics."""
    pytest.importorskip("verl")
    version = importlib.metadata.version("verl")
    if not version.startswith("0.9."):
        pytest.skip(f"pins verl 0.9, found {version}")
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig, PolicyLossConfig

    config = ActorConfig(
        strategy="fsdp",
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
        policy_loss=PolicyLossConfig(**(policy_loss or {})),
        **fields,
    )
    config.global_batch_info.update(info or {})
    leaf = inputs["log_prob"].clone().requires_grad_()
    function = (
        core_algos.compute_policy_loss_reinforce
        if name == "reinforce"
        else core_algos.POLICY_LOSS_REGISTRY[name]
    )
    old = "rollout_log_prob" if name == "reinforce" else "old_log_prob"
    loss, metrics = function(
        **{old: inputs["old_log_prob"]},
        log_prob=leaf,
        advantages=inputs["advantages"],
        response_mask=inputs["response_mask"].to(inputs["log_prob"].dtype),
        loss_agg_mode=mode,
        config=config,
        rollout_is_weights=weights,
    )
    loss.backward()
    return loss.detach(), leaf.grad, metrics


CLIP = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.15}
WIDE = {"clip_ratio_low": 1.0, "clip_ratio_high": 1e9, "clip_ratio_c": 1e9}
ALL = {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 2.0}
SOME = {"kl_cov_ratio": 0.3, "ppo_kl_coef": 0.5}
PARITY = [
    ("reinforce", {}, "reinforce", {}, {"ppo_kl": "ppo_kl"}),
    ("gpg", {}, "gpg", {}, {}),
    ("importance_sampling", {}, "vanilla", WIDE, {"ppo_kl": "ppo_kl"}),
    ("gspo", {**CLIP, "token_level": True}, "gspo", CLIP, {"ppo_kl": "ppo_kl", "pg_clipfrac": "pg_clipfrac"}),
    ("cispo", CLIP, "cispo", CLIP, {"ppo_kl": "ppo_kl", "pg_clipfrac": "pg_clipfrac"}),
    ("sapo", {"tau_pos": 0.7, "tau_neg": 2.0}, "sapo", {"tau_pos": 0.7, "tau_neg": 2.0}, {"ppo_kl": "ppo_kl"}),
    ("clip_cov", {**ALL, **CLIP}, "clip_cov", {**CLIP, "policy_loss": ALL}, {"ppo_kl": "ppo_kl", "cov_frac": "pg_clipfrac"}),
    ("kl_cov", SOME, "kl_cov", {"policy_loss": SOME}, {}),
]  # fmt: skip


@verl
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "options", "theirs", "fields", "metrics"), PARITY, ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_same_as_verl(name, options, theirs, fields, metrics, weighted):
    """Value, gradient and the metrics that mean the same; verl's own 1e-8 beside a row's count is allowed for."""
    inputs = batch("verl")
    weights = torch.rand(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = weights if weighted else None
    for mode in MODES if name != "sapo" else ("seq-mean-token-mean",):
        for info in ({}, {"dp_size": 2, "batch_num_tokens": 50, "global_batch_size": 9}):
            actual = run(
                name, inputs, loss_agg_mode=mode, rollout_is_weights=given, global_batch_info=info, **options
            )
            wanted = verl_run(theirs, inputs, mode, given, info=info, **fields)
            torch.testing.assert_close(actual[0], wanted[0], rtol=2e-8, atol=1e-8)
            torch.testing.assert_close(actual[1], wanted[1], rtol=2e-8, atol=1e-12)
            for ours, verls in metrics.items():
                assert actual[2][ours].item() == pytest.approx(wanted[2][f"actor/{verls}"], rel=1e-5)


@verl
@pytest.mark.parametrize("weighted", [False, True])
def test_gspo_is_verls_where_advantages_agree(weighted):
    """verl has the token form only; with one advantage per response the sequence form moves tokens alike."""
    inputs = batch("verl")
    inputs["advantages"] = inputs["advantages"][:, 1:2].expand(-1, 7)
    weights = torch.full((6, 7), 0.5, dtype=torch.float64) if weighted else None
    for mode in MODES:
        actual = run("gspo", inputs, loss_agg_mode=mode, rollout_is_weights=weights, **CLIP)
        wanted = verl_run("gspo", inputs, mode, weights, **CLIP)
        torch.testing.assert_close(actual[:2], wanted[:2], rtol=2e-8, atol=1e-12)


@verl
def test_verls_gspo_gives_each_token_its_own_advantage():
    """The paper's eq. 5 is a function of s alone, so tokens of a response move alike; verl's move by their own."""
    inputs = {field: tensor[:1, :2] for field, tensor in batch("verl", np.ones((1, 2), bool)).items()}
    inputs["advantages"] = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    wide = {"clip_ratio_low": 0.9, "clip_ratio_high": 9.0}
    ours, theirs = run("gspo", inputs, **wide)[1], verl_run("gspo", inputs, **wide)[1]
    assert ours[0, 0] == ours[0, 1]
    assert theirs[0, 1].item() == pytest.approx(3 * theirs[0, 0].item())
    close(ours.sum(), theirs.sum())


@verl
def test_verls_gspo_bounds_the_ratio_at_e10():
    """Mean log-ratio 15 at advantage -1: verl returned e^10, this e^15."""
    inputs = {name: torch.full((1, 2), x, dtype=torch.float64) for name, x in
              (("old_log_prob", -15.0), ("log_prob", 0.0), ("advantages", -1.0), ("response_mask", 1.0))}  # fmt: skip
    assert verl_run("gspo", inputs, **CLIP)[0].item() == pytest.approx(math.exp(10))
    assert run("gspo", inputs, **CLIP)[0].item() == pytest.approx(math.exp(15))


@verl
def test_verls_sapo_ignores_the_aggregation_it_is_asked_for():
    inputs = batch("verl")
    theirs = [verl_run("sapo", inputs, mode)[0] for mode in MODES]
    assert all(loss == theirs[0] for loss in theirs)
    ours = dict(zip(MODES, (run("sapo", inputs, loss_agg_mode=mode)[0] for mode in MODES), strict=True))
    assert ours["seq-mean-token-mean"].item() == pytest.approx(theirs[0].item(), rel=1e-7)
    assert len({round(loss.item(), 6) for loss in ours.values()}) == 5


@verl
@pytest.mark.parametrize("weighted", [False, True])
def test_gmpo_is_verls_geo_mean(weighted):
    """One advantage per response and no empty row: verl's plain mean over rows is the mean over responses."""
    inputs = batch("verl")
    inputs["advantages"] = inputs["advantages"][:, 1:2].expand(-1, 7)
    weights = torch.rand(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    given = weights if weighted else None
    actual = run("gmpo", inputs, loss_agg_mode="seq-mean-token-mean", rollout_is_weights=given, **CLIP)
    wanted = verl_run("geo_mean", inputs, "token-mean", given, **CLIP)
    torch.testing.assert_close(actual[:2], wanted[:2], rtol=1e-7, atol=1e-10)
    assert actual[2]["ppo_kl"].item() == pytest.approx(wanted[2]["actor/ppo_kl"])


@verl
def test_verls_geo_mean_counts_rows_without_tokens():
    """Two responses and two rows of padding: verl divides by 4, in each micro-batch anew, whatever it is told."""
    inputs = batch("verl", np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool))
    inputs["advantages"] = torch.ones(4, 2, dtype=torch.float64)
    ours = run("gmpo", inputs, loss_agg_mode="seq-mean-token-mean", **CLIP)[0].item()
    assert verl_run("geo_mean", inputs, **CLIP)[0].item() == pytest.approx(ours / 2)
    info = {"global_batch_size": 100, "batch_num_tokens": 1000}
    assert verl_run("geo_mean", inputs, info=info, **CLIP)[0].item() == pytest.approx(ours / 2)
    known = run("gmpo", inputs, loss_agg_mode="seq-mean-token-mean", global_batch_info=info, **CLIP)[0].item()
    assert known == pytest.approx(ours * 2 / 100)


@verl
def test_verls_geo_mean_clips_each_token_by_its_own_sign():
    """Advantages 3 and -1, ratios 2 and 2: the response's advantage is 1, so both are clipped at e^0.15 here.

    In verl the second token's advantage is negative, and its ratio of 2 stays: g = sqrt(2 e^0.15).
    """
    inputs = {
        "old_log_prob": torch.full((1, 2), -1.0, dtype=torch.float64),
        "log_prob": torch.full((1, 2), math.log(2) - 1, dtype=torch.float64),
        "advantages": torch.tensor([[3.0, -1.0]], dtype=torch.float64),
        "response_mask": torch.ones(1, 2),
    }
    assert run("gmpo", inputs, **CLIP)[0].item() == pytest.approx(-math.exp(0.15))
    assert verl_run("geo_mean", inputs, **CLIP)[0].item() == pytest.approx(
        -math.sqrt(2 * math.exp(0.15)), rel=1e-7
    )


@verl
@pytest.mark.parametrize(
    ("name", "theirs"),
    [("gspo", "gspo"), ("cispo", "cispo"), ("sapo", "sapo"), ("gmpo", "geo_mean"), ("clip_cov", "clip_cov"),
     ("kl_cov", "kl_cov"), ("gpg", "gpg"), ("reinforce", "reinforce")],
)  # fmt: skip
def test_nan_at_padding_spoils_verls_loss(name, theirs):
    """One padded token with NaN as its log-probabilities, and a mean over responses."""
    inputs = batch("verl", np.array([[1, 1, 0]], bool), fill=math.nan)
    inputs["advantages"] = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    loss, slope, _ = run(name, inputs, loss_agg_mode="seq-mean-token-mean")
    assert loss.isfinite()
    assert slope.isfinite().all()
    assert slope[0, 2] == 0
    assert verl_run(theirs, inputs, "seq-mean-token-mean")[0].isnan()


@verl
def test_nan_at_padding_takes_a_response_out_of_verls_gspo():
    """The response's mean is NaN, and clamping stops the gradient at NaN: verl's gradient is 0 on valid tokens."""
    inputs = batch("verl", np.array([[1, 1, 0]], bool), fill=math.nan)
    inputs["advantages"] = torch.ones(1, 3, dtype=torch.float64)
    wide = {"clip_ratio_low": 0.9, "clip_ratio_high": 9.0}
    assert (run("gspo", inputs, **wide)[1][0, :2] < 0).all()
    assert verl_run("gspo", inputs, **wide)[1].tolist() == [[0.0, 0.0, 0.0]]
