"""ReMax with each token charged for its own KL, as the authors' code does."""

import math

import numpy as np
import pytest
import torch
from reference import cases, conventions
from reference.tensors import as_tensor

import rl_estimators
from rl_estimators import collect_metrics
from rl_estimators.errors import InputError


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def by_the_code(score, baseline, kl, beta):
    """One response of the authors' ``compute_returns`` with gamma 1, where its clip to [-5, 5] does not bind.

    From the last token to the first: the score less the baseline, the same for all, and that token's own KL.
    """
    return [score - baseline - beta * own for own in kl]


R, OLD, REF = [0.0, 2.0], [-1.0, -2.0], [-1.5, -1.0]  # KL (k1): -1 + 1.5 = 0.5, -2 + 1 = -1


def run(rewards=(R,), mask=((1, 1),), old=(OLD,), ref=(REF,), baseline=(0.5,), **options):
    return rl_estimators.estimate(
        "remax",
        token_level_rewards=matrix(*rewards),
        response_mask=torch.tensor(mask),
        reward_baselines=torch.tensor(baseline, dtype=torch.float64),
        old_log_probs=None if old is None else matrix(*old),
        ref_log_prob=None if ref is None else matrix(*ref),
        **options,
    )


def close(actual, *rows):
    torch.testing.assert_close(actual, matrix(*rows), rtol=1e-12, atol=1e-12)


def test_by_hand():
    """2 - 0.5 - 0.1 * 0.5 = 1.45 and 2 - 0.5 + 0.1 = 1.6; k2 is d^2 / 2: 0.125 and 0.5. Returns are those of the rewards."""
    got = run(beta=0.1)
    close(got.advantages, [1.45, 1.6])
    close(got.advantages, by_the_code(2, 0.5, [0.5, -1], 0.1))
    close(got.returns, [2, 2])
    close(run(beta=0.1, penalty="k2").advantages, [1.4875, 1.45])
    close(run(beta=0.1, gamma=0.5).advantages, [0.45, 1.6])


def test_in_the_reward_it_is_summed_up():
    """The first token pays for both: 2 - 0.1 * (0.5 - 1) - 0.5 = 1.55."""
    charged = rl_estimators.kl_in_reward(matrix(R), matrix(OLD), matrix(REF), torch.ones(1, 2), beta=0.1)
    close(run(rewards=charged.tolist()).advantages, [1.55, 1.6])


@pytest.mark.parametrize("case", ["ragged_prefix", "holes", "all_masked_rows", "nan_at_masked", "nan_score"])
def test_against_the_code(case):
    """Scores on the last valid token, NaN as log-probabilities at masked ones."""
    case = cases.BY_NAME[case]
    mask, rng = case.response_mask, cases.rng_of("log-probabilities " + case.name)
    scores = rng.normal(size=len(mask))
    rewards = cases.terminal(mask, scores)
    rewards[~mask] = np.nan
    kl = rng.normal(size=mask.shape)
    ref = rng.normal(size=mask.shape)
    wanted = np.zeros(mask.shape)
    for b, at in enumerate(conventions.places_of(rewards, mask)):
        if len(at):
            wanted[b, at] = by_the_code(scores[b], case.reward_baselines[b], kl[b, at], 0.3)
    got = rl_estimators.estimate(
        "remax",
        token_level_rewards=as_tensor(rewards, torch.float64),
        response_mask=torch.tensor(mask),
        reward_baselines=as_tensor(case.reward_baselines, torch.float64),
        old_log_probs=as_tensor(np.where(mask, ref + kl, np.nan), torch.float64),
        ref_log_prob=as_tensor(np.where(mask, ref, np.inf), torch.float64),
        beta=0.3,
    )
    np.testing.assert_allclose(got.advantages.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_nothing_is_read_without_beta():
    """To the last bit, whatever the log-probabilities are."""
    plain = run(old=None, ref=None)
    assert torch.equal(run(old=([math.nan] * 2,), ref=([math.inf] * 2,)).advantages, plain.advantages)


def test_a_kl_that_is_not_finite_excludes_its_response():
    with collect_metrics() as metrics:
        got = run(
            rewards=(R, R), mask=((1, 1), (1, 1)), old=(OLD, [-1.0, -math.inf]), ref=(REF, REF), beta=0.1,
            baseline=(0.5, 0.5),
        )  # fmt: skip
    close(got.advantages, [1.45, 1.6], [0, 0])
    assert metrics["excluded_responses"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.1, "ref": None}, "remax is missing ref_log_prob\n  ref_log_prob: log-probabilities under the reference"),
        ({"beta": 0.1, "old": None, "ref": None}, "remax is missing old_log_probs, ref_log_prob"),
        ({"beta": -0.1}, r"remax: beta is -0.1, expected a number in \[0, inf\]"),
        ({"penalty": "kl"}, "remax: penalty is 'kl', expected one of k1, k2, k3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(InputError, match=message):
        run(**options)
