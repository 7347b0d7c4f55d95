"""The picture: it is drawn whatever was compared, and shows the numbers."""

import io
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from compare.batches import INDEX, rollouts

from rl_estimators.compare import compare, picture, read_choices
from rl_estimators.compare.picture import draw
from rl_estimators.compare.summary import summarise


def summaries(*batches, names="grpo,rloo,reinforce_pp"):
    return [summarise(compare(batch, read_choices([names]))) for batch in batches]


def pixels(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


CASES = {
    "several": [rollouts(), rollouts(step=2)],
    "one response": [rollouts([1.0], ["a"], [1])],
    "no score": [rollouts([math.nan] * 2, ["a", "a"], [1, 1])],
    "one score": [rollouts([3.0] * 2, ["a", "a"], [1, 1])],
    "below zero": [rollouts([-1.0, -3.0], ["a", "a"], [1, 1])],
    "many prompts": [rollouts(np.arange(300.0) % 7, np.arange(300) // 3, [2] * 300)],
}


@pytest.mark.parametrize("case", CASES)
def test_drawn(case):
    shape = pixels(draw(summaries(*CASES[case]), "a title")).shape
    assert shape[0] > 400
    assert shape[1] > 1000


def test_any_title_and_any_name():
    title = "$x^ \x1b[0m \ud800 \u4e2d_{"
    assert draw(summaries(rollouts(), names="grpo:compat=verl,reinforce,grpo:norm_by_std=false"), title)


def test_the_same_twice():
    given = summaries(rollouts())
    assert draw(given, "t") == draw(given, "t")


def test_prompts_from_the_lowest_to_the_highest_and_their_shares():
    (given,) = summaries(rollouts(), names="grpo")
    means, shares, per = picture._prompts([given, given], ["grpo"])
    assert per == 1
    assert means.tolist() == sorted([0, 0.25, 0.5, 1, 1] * 2)
    assert shares.sum() == pytest.approx(1)
    own = dict(zip(dict.fromkeys(INDEX), given.shares["grpo"], strict=True))
    assert shares[0, :4].tolist() == pytest.approx([0, 0, own["mixed"] / 2, own["mixed"] / 2])


def test_many_prompts_share_columns():
    (given,) = summaries(*CASES["many prompts"], names="rloo")
    means, shares, per = picture._prompts([given], ["rloo"])
    assert (len(means), shares.shape) == (80, (1, 80))
    assert per == 100 / 80
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(means) >= 0).all()
