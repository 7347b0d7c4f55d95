"""The theory of policy gradients, asserted to the last digit on a language of 31 responses.

The laboratory itself is first held against sums over all strings that are written out here.
"""

import itertools
import math

import pytest
import torch

import rl_estimators
from rl_estimators.errors import InputError
from rl_estimators.lab import LanguageMDP, measure

EXACT = 1e-10
PLAIN = {"whiten": False}  # GAE as a gradient of the right length


@pytest.fixture(scope="module")
def mdp():
    return LanguageMDP(seed=3)


def strings(vocabulary, max_length):
    """Every response: tokens 1, 2, ... up to the end token 0 or to the greatest length."""
    for length in range(max_length):
        for words in itertools.product(range(1, vocabulary), repeat=length):
            yield (*words, 0)
    yield from itertools.product(range(1, vocabulary), repeat=max_length)


def prefix_number(prefix, vocabulary):
    """Shorter ones first, then as numbers with the digits 1, 2, ..."""
    number = sum((vocabulary - 1) ** shorter for shorter in range(len(prefix)))
    return number + sum((a - 1) * (vocabulary - 1) ** i for i, a in enumerate(reversed(prefix)))


def steps(response, vocabulary):
    return [(prefix_number(response[:t], vocabulary), a) for t, a in enumerate(response)]


def expected_return(logits, rewards, max_length):
    """The mean over prompts of the sum over strings of probability times return."""
    prompts, _, vocabulary = rewards.shape
    total = 0.0
    for p, response in itertools.product(range(prompts), strings(vocabulary, max_length)):
        path = steps(response, vocabulary)
        log_probability = sum(logits[p, s].log_softmax(-1)[a] for s, a in path)
        total = total + log_probability.exp() * sum(rewards[p, s, a] for s, a in path)
    return total / prompts


# ---------------------------------------------------------------------------------------- the laboratory

SIZES = [(2, 1, 1), (2, 4, 2), (3, 1, 2), (3, 4, 2), (4, 3, 1)]


@pytest.mark.parametrize(("vocabulary", "max_length", "prompts"), SIZES)
def test_every_string_is_a_response_once(vocabulary, max_length, prompts):
    mdp = LanguageMDP(vocabulary, max_length, prompts)
    tokens, _, mask = mdp.responses
    found = [tuple(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]
    assert sorted(found) == sorted(strings(vocabulary, max_length))
    torch.testing.assert_close(mdp.probabilities.sum(-1), torch.ones(prompts, dtype=torch.float64))


@pytest.mark.parametrize(("vocabulary", "max_length", "prompts"), SIZES)
def test_true_gradient_is_autograd_of_the_expected_return(vocabulary, max_length, prompts):
    mdp = LanguageMDP(vocabulary, max_length, prompts, seed=1)
    logits = mdp.logits.clone().requires_grad_()
    value = expected_return(logits, mdp.rewards, max_length)
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(mdp.true_gradient(), gradient, rtol=0, atol=1e-13)
    torch.testing.assert_close(mdp.values().v[:, 0].mean(), value.detach(), rtol=0, atol=1e-13)


def test_true_gradient_is_the_finite_difference():
    mdp, h = LanguageMDP(3, 3, 2, seed=2), 1e-5
    for i, slope in enumerate(mdp.true_gradient().flatten()):
        up, down = mdp.logits.clone(), mdp.logits.clone()
        up.view(-1)[i] += h
        down.view(-1)[i] -= h
        ends = [expected_return(logits, mdp.rewards, 3) for logits in (up, down)]
        assert float(ends[0] - ends[1]) / (2 * h) == pytest.approx(
            float(slope), abs=1e-9
        )  # h^2 and 1e-16 / h


def test_values_are_means_over_what_may_still_be_written(mdp):
    """V(s) and Q(s, a) as sums over the strings that pass there, over their probability."""
    v, q, a = mdp.values()
    weight, earned = torch.zeros_like(q), torch.zeros_like(q)
    for p, response in itertools.product(range(2), strings(3, 4)):
        path = steps(response, 3)
        rewards = [mdp.rewards[p, s, token] for s, token in path]
        probability = math.prod(mdp.logits[p, s].softmax(-1)[token] for s, token in path)
        for t, (s, token) in enumerate(path):
            weight[p, s, token] += probability
            earned[p, s, token] += probability * sum(rewards[t:])
    torch.testing.assert_close(q, earned / weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(v, earned.sum(-1) / weight.sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(a, q - v[..., None], rtol=0, atol=0)


def test_greedy_returns_follow_the_largest_logit(mdp):
    for p in range(2):
        prefix, earned = (), 0.0
        while len(prefix) < 4 and 0 not in prefix:
            s = prefix_number(prefix, 3)
            token = int(mdp.logits[p, s].argmax())
            earned += float(mdp.rewards[p, s, token])
            prefix = (*prefix, token)
        assert float(mdp.greedy_returns()[p]) == pytest.approx(earned, abs=1e-14)


def test_scores_are_the_gradients_of_log_probabilities(mdp):
    logits = mdp.logits.clone().requires_grad_()
    tokens, prefixes, mask = mdp.responses
    for p, n, t in [(0, 0, 0), (1, 30, 3), (1, 12, 2), (0, 5, 1)]:
        assert mask[n, t]
        log_probability = logits[p, prefixes[n, t]].log_softmax(-1)[tokens[n, t]]
        (gradient,) = torch.autograd.grad(log_probability, logits)
        torch.testing.assert_close(mdp.scores[p, n, t], gradient.flatten(), rtol=0, atol=1e-15)
    assert (mdp.scores[:, ~mask] == 0).all()


def test_a_seed_says_everything():
    one, two, other = LanguageMDP(seed=5), LanguageMDP(seed=5, shift=2.0), LanguageMDP(seed=6)
    assert torch.equal(one.logits, two.logits)
    torch.testing.assert_close(one.at_tokens(one.rewards).sum(-1) + 2, two.at_tokens(two.rewards).sum(-1))
    assert not torch.equal(one.logits, other.logits)
    assert torch.equal(one.critic(1.0, seed=4), one.critic(1.0, seed=4))
    assert torch.equal(one.critic(), one.values().v)


# ------------------------------------------------------------------------------------------ without bias


def raw_return(mdp):
    return {"name": "reinforce"}


def no_critic(mdp):
    """A critic that says 0 leaves GAE with lambda 1 the reward-to-go."""
    return {"name": "gae", "critic": torch.zeros_like(mdp.critic()), "options": PLAIN}


UNBIASED = {
    "raw return": raw_return,
    "gae, critic of 0, lambda 1": no_critic,
    "mc, wrong critic": lambda mdp: {"name": "mc", "critic": mdp.critic(3.0), "options": PLAIN},
    "td, exact critic": lambda mdp: {"name": "td", "options": PLAIN},
    "k_step_td, exact critic": lambda mdp: {"name": "k_step_td", "options": {**PLAIN, "k": 2}},
    "decoupled_gae, exact critic": lambda mdp: {"name": "decoupled_gae", "options": {**PLAIN, "lam": 0.3}},
    "remax": lambda mdp: {"name": "remax"},
    "gae, exact critic, lambda 1": lambda mdp: {"name": "gae", "options": PLAIN},
    "gae, exact critic, lambda 0.5": lambda mdp: {"name": "gae", "options": {**PLAIN, "lam": 0.5}},
    "gae, exact critic, lambda 0": lambda mdp: {"name": "gae", "options": {**PLAIN, "lam": 0.0}},
    "gae, wrong critic, lambda 1": lambda mdp: {
        "name": "gae",
        "critic": mdp.critic(3.0),
        "options": PLAIN,
    },
}


@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("case", UNBIASED)
def test_unbiased(case, shift):
    """E[A grad log pi] = E[(G - b) grad log pi] with b free of the token, and E[grad log pi] = 0."""
    mdp = LanguageMDP(seed=3, shift=shift)
    found = measure(**UNBIASED[case](mdp), mdp=mdp)
    assert found.exact
    assert found.bias < EXACT
    assert found.cosine == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("name", ["gae", "remax"])
def test_unbiased_in_batches_of_groups(name):
    mdp = LanguageMDP(2, 2, 2, seed=1)
    options = PLAIN if name == "gae" else {}
    assert measure(name, mdp, group_size=2, batch_size=2, options=options).bias < EXACT


# (sizes of the language, n): all P * N^n groups are looked at
GROUPS = [((3, 4, 2), 2), ((3, 2, 2), 3), ((3, 2, 1), 4), ((2, 3, 2), 5)]


@pytest.mark.parametrize(("sizes", "n"), GROUPS)
def test_dr_grpo_is_the_true_gradient_shortened(sizes, n):
    """The mean holds the response's own score: s - mean = (n - 1) / n (s - mean of the others).

    That every token is also credited with the rewards before it costs variance, not bias: the past is a baseline.
    """
    mdp = LanguageMDP(*sizes, seed=4)
    found = measure("grpo", mdp, group_size=n, options={"norm_by_std": False})
    torch.testing.assert_close(found.mean, (n - 1) / n * found.truth, rtol=0, atol=EXACT)
    assert found.scale == pytest.approx((n - 1) / n, abs=EXACT)
    assert found.bias_up_to_scale < EXACT


@pytest.mark.parametrize(("sizes", "n"), GROUPS)
def test_rloo_is_unbiased(sizes, n):
    assert measure("rloo", LanguageMDP(*sizes, seed=4), group_size=n).bias < EXACT


# ------------------------------------------------------------------------- the true gradient of another aim


@pytest.mark.parametrize("n", [2, 3, 4])
def test_maxrl_climbs_a_truncated_series_of_the_log_likelihood(n):
    """Scores of 0 and 1 and a chance p to succeed: the mean is sum_{k=0}^{n-2} (1 - p)^k times the gradient of p."""
    mdp = LanguageMDP(3, 2, 2, token_reward=0.0, seed=4)
    mdp.components = (mdp.components > 0).double()
    factor = sum((1 - mdp.values().v[:, 0]) ** k for k in range(n - 1))
    found = measure("maxrl", mdp, group_size=n)
    torch.testing.assert_close(found.mean, factor[:, None, None] * found.truth, rtol=0, atol=EXACT)


@pytest.mark.parametrize("n", [2, 3])
def test_grpo_passk_climbs_the_best_of_n(n):
    """Summed over its group, the paper's estimator has the gradient of the expected best score as its mean."""
    mdp = LanguageMDP(3, 2, 2, seed=4)
    logits = mdp.logits.clone().requires_grad_()
    best = 0.0
    for p in range(2):
        paths = [steps(response, 3) for response in strings(3, 2)]
        scores = [float(sum(mdp.rewards[p, s, a] for s, a in path)) for path in paths]
        chances = [sum(logits[p, s].log_softmax(-1)[a] for s, a in path).exp() for path in paths]
        for picks in itertools.product(range(len(paths)), repeat=n):
            best = best + math.prod(chances[i] for i in picks) * max(scores[i] for i in picks) / 2
    (gradient,) = torch.autograd.grad(best, logits)
    found = measure("grpo_passk", mdp, group_size=n, options={"norm_by_std": False})
    torch.testing.assert_close(n * found.mean, gradient, rtol=0, atol=EXACT)


# ------------------------------------------------------------------------------------------- with a bias


def test_dividing_by_the_groups_spread_turns_the_gradient():
    """Prompts, and groups of them, are weighed by how little they vary: no scale repairs that."""
    mdp = LanguageMDP(3, 2, 2, prompt_spread=2.0, seed=4)
    found = measure("grpo", mdp, group_size=3)
    assert found.bias_up_to_scale > 0.01
    assert 0.5 < found.cosine < 0.9999


def test_whitening_a_batch_leaves_the_direction_roughly():
    mdp = LanguageMDP(3, 2, 1, seed=4)
    small, large = (measure("reinforce_pp", mdp, batch_size=b) for b in (2, 4))
    assert small.exact
    assert large.exact
    assert 0.9 < small.cosine < large.cosine < 1  # the batch's own statistics matter less the larger it is


def test_gae_bias_goes_to_zero_as_lambda_goes_to_one(mdp):
    """The wrong critic enters the mean through (1 - lambda) alone, so near 1 the bias is linear in it."""
    lams = [0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0]
    critic = mdp.critic(0.5, seed=1)
    biases = [measure("gae", mdp, critic=critic, options={**PLAIN, "lam": lam}).bias for lam in lams]
    assert biases == sorted(biases, reverse=True)
    assert biases[0] > 0.1 * float(mdp.true_gradient().norm())
    assert biases[-1] < EXACT
    assert biases[-3] / biases[-2] == pytest.approx(10, rel=0.05)


def test_k_step_bias_ends_where_k_reaches_the_end(mdp):
    """It need not fall before: the critic may be worse two tokens on than one."""
    critic = mdp.critic(0.5, seed=1)
    biases = [measure("k_step_td", mdp, critic=critic, options={**PLAIN, "k": k}).bias for k in (1, 2, 3, 4)]
    assert min(biases[:3]) > 0.01
    assert biases[3] < EXACT


def test_gae_bias_at_lambda_0_is_the_critics_error_at_the_next_prefix(mdp):
    r"""E[delta | s, a] = Q + e(sa) - V - e(s), so the bias is d(s) pi(a|s) (e(sa) - sum_b pi(b|s) e(sb)) / P."""
    critic = mdp.critic(0.5, seed=1)
    error, expected = critic - mdp.values().v, torch.zeros_like(mdp.logits)
    inner = [prefix for k in range(4) for prefix in itertools.product((1, 2), repeat=k)]
    for p, prefix in itertools.product(range(2), inner):
        s, policy = prefix_number(prefix, 3), mdp.logits[p, prefix_number(prefix, 3)].softmax(-1)
        reach = math.prod(mdp.logits[p, t].softmax(-1)[token] for t, token in steps(prefix, 3))
        after = torch.zeros(3, dtype=torch.float64)
        if len(prefix) < 3:
            after[1:] = torch.stack([error[p, prefix_number((*prefix, b), 3)] for b in (1, 2)])
        expected[p, s] = reach * policy * (after - policy @ after) / 2
    found = measure("gae", mdp, critic=critic, options={**PLAIN, "lam": 0.0})
    torch.testing.assert_close(found.mean - found.truth, expected, rtol=0, atol=EXACT)


# ---------------------------------------------------------------------------------------------- variance


def total(case, shift, max_length=4):
    mdp = LanguageMDP(max_length=max_length, seed=3, shift=shift)
    return measure(**case(mdp), mdp=mdp)


INVARIANT = {
    "remax": UNBIASED["remax"],
    "gae with an exact critic": UNBIASED["gae, exact critic, lambda 0.5"],
    "dr. grpo": lambda mdp: {"name": "grpo", "group_size": 2, "options": {"norm_by_std": False}},
    "grpo": lambda mdp: {"name": "grpo", "group_size": 2},
    "rloo": lambda mdp: {"name": "rloo", "group_size": 2},
    "reinforce_pp": lambda mdp: {"name": "reinforce_pp", "batch_size": 2},
}


@pytest.mark.parametrize("case", INVARIANT)
def test_a_constant_on_all_rewards_changes_nothing(case):
    here, there = (total(INVARIANT[case], shift, max_length=3) for shift in (0.0, 100.0))
    torch.testing.assert_close(here.mean, there.mean, rtol=0, atol=1e-9)
    assert here.variance == pytest.approx(there.variance, rel=1e-9)


def test_the_raw_returns_variance_grows_with_the_square_of_the_constant(mdp):
    """With z = grad log pi(y), g_c = g_0 + c z and E z = 0: var g_c = var g_0 + 2 c E<g_0, z> + c^2 E|z|^2."""
    z = mdp.scores.sum(2)  # (P, N, D)
    returns = mdp.at_tokens(mdp.rewards).flip(-1).cumsum(-1).flip(-1)
    g = (mdp.scores * returns[..., None]).sum(2)
    weight = mdp.probabilities / 2
    square = float((weight * z.square().sum(-1)).sum())
    cross = float((weight * (z * g).sum(-1)).sum())
    plain = total(raw_return, 0.0).variance
    for shift in (-3.0, 1.0, 10.0, 100.0):
        expected = plain + 2 * shift * cross + shift**2 * square
        assert total(raw_return, shift).variance == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_baselines_take_variance_away(seed):
    """Rewards around 3, as absolute rewards are; every baseline beats none, and the critic beats all."""
    mdp = LanguageMDP(seed=seed, shift=3.0)
    raw = measure(**raw_return(mdp), mdp=mdp)
    remax, critic = measure("remax", mdp), measure("gae", mdp, options=PLAIN)
    td = measure("gae", mdp, options={**PLAIN, "lam": 0.0})
    assert raw.variance > remax.variance > critic.variance > td.variance
    mdp = LanguageMDP(max_length=3, seed=seed, shift=3.0)
    raw = measure("reinforce", mdp, group_size=2)
    group = measure("rloo", mdp, group_size=2)
    assert raw.variance > group.variance


def test_independent_responses_share_their_variance():
    mdp = LanguageMDP(2, 2, 2, seed=1)
    one, three = measure("remax", mdp), measure("remax", mdp, batch_size=3)
    assert three.variance == pytest.approx(one.variance / 3, rel=1e-12)
    assert three.noise_to_signal == pytest.approx(one.noise_to_signal, rel=1e-12)


def test_a_gradient_of_0_has_no_direction():
    found = measure("grpo", LanguageMDP(), options={"norm_by_std": False})  # groups of one
    assert found.relative_bias == 1
    assert found.cosine == found.scale == found.variance == 0
    assert found.bias_up_to_scale == found.noise_to_signal == math.inf


# ---------------------------------------------------------------------------------------------- sampling


def test_sampling_agrees_with_enumeration_within_its_stated_error(mdp):
    exact = measure("remax", mdp)
    errors = []
    for seed in range(20):
        found = measure("remax", mdp, samples=200, seed=seed)
        assert not found.exact
        assert found.standard_error == pytest.approx((exact.variance / 200) ** 0.5, rel=0.3)
        assert abs(found.variance - exact.variance) < 5 * found.variance_error
        errors.append(float((found.mean - exact.mean).square().sum()))
    stated = exact.variance / 200  # the mean of 20 errors of a sum of many terms: within half of it
    assert sum(errors) / 20 == pytest.approx(stated, rel=0.5)


@pytest.mark.parametrize("name", rl_estimators.list_adv_est())
def test_whatever_is_registered_points_uphill(name):
    shift = 10.0 if name == "maxrl" else 0.0  # refuses scores below 0
    mdp = LanguageMDP(seed=0, shift=shift)
    found = measure(name, mdp, group_size=4, batch_size=4, samples=200)
    assert found.responses == 16
    assert found.cosine > 0.5


# ---------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LanguageMDP(vocabulary=1), r"LanguageMDP: vocabulary is 1, expected a number in \[2, inf\]"),
        (lambda: LanguageMDP(max_length=0), r"max_length is 0, expected a number in \[1, inf\]"),
        (lambda: LanguageMDP(prompts=0), r"prompts is 0"),
        (lambda: LanguageMDP(token_reward=-1.0), r"token_reward is -1.0"),
        (lambda: LanguageMDP(sharpness=-1.0), r"sharpness is -1.0"),
        (lambda: LanguageMDP(prompt_spread=-1.0), r"prompt_spread is -1.0"),
        (
            lambda: LanguageMDP(9, 6),
            r"vocabulary=9 and max_length=6 make 299,593 responses, more than 1,000; choose",
        ),
        (lambda: LanguageMDP().critic(-1.0), r"critic: noise is -1.0"),
        (lambda: measure("gae", LanguageMDP(), group_size=0), r"measure: group_size is 0"),
        (
            lambda: measure("gae", LanguageMDP(), samples=1),
            r"measure: samples is 1, expected a number in \[2",
        ),
        (
            lambda: measure("gae", LanguageMDP(), group_size=2, batch_size=2),
            r"3,694,084 possible batches of 2 x 2 responses, more than 100,000; give samples, or smaller sizes",
        ),
        (
            lambda: measure("gae", LanguageMDP(), critic=torch.zeros(2, 4)),
            r"critic has shape \(2, 4\), expected \(2, 15\): a value for each prompt and prefix",
        ),
        (lambda: measure("gae", LanguageMDP(), options={"lambda_": 1}), r"gae has no option 'lambda_'"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
