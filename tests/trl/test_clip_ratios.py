"""What counts as held by the clip, on numbers where it can be counted by hand; beside TRL's own: test_exact_losses.py."""

import math

import pytest
import torch

from rl_estimators import list_policy_loss, policy_loss

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

from rl_estimators.trl import clip_ratios  # noqa: E402

NAN = math.nan
# Two responses and an empty one. Ratios 0.5, 1.5, 1, 0.5 and 1.5, 1.5; garbage where the mask is false.
RATIOS = torch.tensor([[0.5, 1.5, 1.0, 0.5], [1.5, NAN, 1.5, NAN], [NAN, NAN, NAN, NAN]])
GAIN = torch.tensor([[-1.0, 1.0, 1.0, 1.0], [-1.0, NAN, -1.0, NAN], [NAN, NAN, NAN, NAN]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
INPUTS = (torch.where(MASK, 0.0, NAN), RATIOS.log(), GAIN, MASK)


@pytest.mark.parametrize("name", ["ppo_clip", "clip_cov", "cispo"])
def test_by_token(name):
    """Below 0.8 with a negative advantage; above 1.2 with a positive one. The others a clip would not hold."""
    low, high = clip_ratios.held(name, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}, *INPUTS)
    assert low.nonzero().tolist() == [[0, 0]]
    assert high.nonzero().tolist() == [[0, 1]]


def test_by_response():
    """The first's ratio is (0.5 * 1.5 * 1 * 0.5) ** (1 / 4) = 0.78, the second's 1.5."""
    low, high = clip_ratios.held("gspo", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}, *INPUTS)
    assert low.nonzero().tolist() == [[0, 0]]  # the only token of a negative advantage there
    assert not high.any()  # the second's ratio is above the bound, its advantage negative


def test_by_logarithm():
    """The first response's mean advantage is 0.5, the second's -1; log 0.5 = -0.69, log 1.5 = 0.41."""
    low, high = clip_ratios.held("gmpo", {}, *INPUTS)  # bounds of 0.4
    assert not low.any()
    assert high.nonzero().tolist() == [[0, 1]]


def test_the_losses_own_bounds_where_none_is_given():
    low, high = clip_ratios.held("ppo_clip", {"clip_ratio_low": 0.6}, *INPUTS)
    assert not low.any()
    assert high.any()


@pytest.mark.parametrize("name", ["ppo_clip", "clip_cov", "gspo", "gmpo"])
def test_both_ends_are_all_that_the_loss_reports(name):
    """Its own metric is computed elsewhere, block by block."""
    generator = torch.Generator().manual_seed(0)
    old, step, gain = torch.randn(3, 6, 9, generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.7
    gain = gain[:, :1].expand_as(old)
    options = {"clip_ratio_low": 0.01, "clip_ratio_high": 0.02}
    new = old + step / 3
    low, high = clip_ratios.held(name, options, old, new, gain, mask)
    arguments = {"old_log_prob": old, "log_prob": new, "advantages": gain, "response_mask": mask}
    _, metrics = policy_loss(name, **arguments, **options)
    ours = metrics["pg_clipfrac"] + (metrics["pg_clipfrac_lower"] if name == "gmpo" else 0)
    assert (low | high).sum() / mask.sum() == pytest.approx(float(ours))
    assert low.any()
    assert high.any()


def test_a_loss_without_a_clip_has_none():
    clipping = {"ppo_clip", "clip_cov", "cispo", "gspo", "gmpo"}
    found = {name for name in list_policy_loss() if clip_ratios.held(name, {}, *INPUTS) is not None}
    assert found == clipping


def test_shares_of_tokens_and_of_responses():
    held = clip_ratios.held("ppo_clip", {}, *INPUTS)
    shares = clip_ratios.shares("ppo_clip", held, MASK)
    assert {name: float(share) for name, share in shares.items()} == pytest.approx(
        {"clip_ratio/low_mean": 1 / 6, "clip_ratio/high_mean": 1 / 6, "clip_ratio/region_mean": 1 / 3}
    )
    assert clip_ratios.per_response(held[0], MASK).tolist() == pytest.approx([0.25, 0, NAN], nan_ok=True)
    assert list(clip_ratios.shares("cispo", held, MASK)) == ["cispo_clip_ratio"]
