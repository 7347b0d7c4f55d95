"""``arithmetic="trl"`` against the functions of the installed TRL, to the bit, and where TRL has no numbers."""

import math

import pytest
import torch

from rl_estimators import estimate
from rl_estimators.errors import InputError
from rl_estimators.estimators import trl_arithmetic


def advantages(scores, index, **options):
    """Of responses of one token each."""
    scores = torch.as_tensor(scores)[:, None]
    return estimate(
        "grpo", token_level_rewards=scores, response_mask=scores == scores, index=index, **options
    ).advantages[:, 0]


@pytest.mark.trl
@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 16, 33])
@pytest.mark.parametrize("scale", [True, False])
def test_equals_trl(size, scale):
    """As `_generate_and_score_completions` has it in TRL 1.12 to 1.16, with TRL's own nanstd."""
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    generator = torch.Generator().manual_seed(size)
    for kind in range(6):
        scores = torch.rand(24 * size, generator=generator) * 10**kind
        if kind % 2:
            scores = (scores * 3).round() / 3 / 10**kind  # many are equal
        scores[torch.rand(24 * size, generator=generator) < 0.1 * (kind // 2)] = torch.nan
        table = scores.view(-1, size)
        wanted = scores - table.nanmean(dim=1).repeat_interleave(size)
        if scale:
            wanted = wanted / (nanstd(table, dim=1).repeat_interleave(size) + 1e-4)
        ids = torch.arange(24).repeat_interleave(size)
        found = advantages(scores, ids, compat="trl", norm_by_std=scale)
        assert torch.equal(found, wanted.nan_to_num(nan=0.0))


def test_rounding_errors_are_taken_over():
    """0.9 in float32 is 15099494 / 2^24. Three of them are 45298482, which fits between 2^25 and 2^26 only as a

    multiple of 4: 45298480. A third of that is 15099493.33, so the mean is 15099493 / 2^24: each score is 2^-24 above.
    """
    error = 2.0**-24
    std = math.sqrt(error**2 * 3 / 2)
    found = advantages([0.9, 0.9, 0.9], [0, 0, 0], compat="trl")
    torch.testing.assert_close(found, torch.full((3,), error / (std + 1e-4)), rtol=1e-6, atol=0)
    assert (advantages([0.9, 0.9, 0.9], [0, 0, 0], epsilon=1e-4) == 0).all()


def test_ragged_groups_in_any_order():
    """A group's numbers do not depend on the other groups, nor on where its responses stand."""
    index = ["a", "b", "a", "c", "b", "a", "c", "d", "c", "c"]
    scores = torch.rand(10, generator=torch.Generator().manual_seed(0)).double()
    found = advantages(scores, index, compat="trl")
    for name in "abcd":
        members = [row for row, other in enumerate(index) if other == name]
        own = scores[members]
        wanted = (own - own.mean()) / (own.std() + 1e-4) if len(own) > 1 else own * 0
        torch.testing.assert_close(found[members], wanted)


def test_spread_of_the_sample():
    """Scores 1 and 3: their mean square from the mean is 1."""
    found = advantages([1.0, 3.0], [0, 0], arithmetic="trl", ddof=0, epsilon=0.5)
    assert found.tolist() == pytest.approx([-2 / 3, 2 / 3])


def test_no_responses():
    empty = torch.zeros(0, dtype=torch.long)
    assert trl_arithmetic.group_advantages(torch.zeros(0), empty, empty.bool(), 1e-4).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arithmetic": "trk"}, "grpo: arithmetic is 'trk', expected one of pivot, trl. Did you mean 'trl'"),
        (
            {"arithmetic": "trl", "singleton": "raw"},
            "grpo with arithmetic='trl': singleton is 'raw', expected one of zero",
        ),
        (
            {"compat": "trl", "arithmetic": "pivot"},
            "arithmetic='pivot' contradicts compat='trl', which has 'trl'",
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        advantages([1.0, 2.0], [0, 0], **options)
