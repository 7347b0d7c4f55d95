"""Which curves are drawn, and how they are smoothed and summed up."""

import csv
import math

import numpy as np
import pytest

from rl_estimators.errors import InputError
from rl_estimators.files.problems import Problems
from rl_estimators.plot import table
from rl_estimators.plot.concepts import CONCEPTS
from rl_estimators.plot.draw import draw
from rl_estimators.plot.panels import choose, names_of
from rl_estimators.plot.runs import Run, Series
from rl_estimators.plot.smoothing import smooth


def run(name, **metrics):
    return Run(
        name,
        {
            metric.replace("__", "/"): Series(np.arange(1, len(values) + 1), np.array(values, dtype=float))
            for metric, values in metrics.items()
        },
    )


VERL = run("verl", critic__score__mean=[0.25, 0.75, 0.5], actor__kl_loss=[0.1], perf__mfu=[3.0])
TRL = run("trl", reward=[0.5, math.nan], kl=[0.2], completions__mean_length=[7.0])


def chosen(patterns, *runs):
    problems = Problems()
    panels = choose(runs, patterns, problems)
    return {p.concept.name: {c.run: c.metric for c in p.curves} for p in panels}, problems.lines()


def test_both_frameworks_share_a_panel():
    found, notes = chosen([], VERL, TRL)
    assert found == {
        "reward": {"verl": "critic/score/mean", "trl": "reward"},
        "kl": {"verl": "actor/kl_loss", "trl": "kl"},
        "response_length": {"trl": "completions/mean_length"},
    }
    assert notes == [
        "entropy: no run has actor/entropy or actor/entropy_loss or entropy; left out",
        "clip_share: no run has actor/pg_clipfrac or clip_ratio/region_mean or cispo_clip_ratio; left out",
        "explained_variance: no run has critic/vf_explained_var or critic/explained_variance; left out",
    ]


def test_the_first_name_that_a_run_has():
    both = run("verl", actor__kl_loss=[0.1], actor__reward_kl_penalty=[0.2])
    assert chosen(["kl"], both)[0] == {"kl": {"verl": "actor/reward_kl_penalty"}}


def test_names_of_concepts_are_no_two_and_no_metric_has_two_concepts():
    names = [name for concept in CONCEPTS for name in concept.names]
    assert len(set(names)) == len(names)
    assert len({concept.name for concept in CONCEPTS}) == len(CONCEPTS)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["perf/mfu"], ["perf/mfu"]),
        (["actor/*", "perf/mf?"], ["actor/kl_loss", "perf/mfu"]),
        (["train/kl"], ["kl"]),
        (["reward", "reward"], ["reward"]),
        (
            ["*"],
            ["actor/kl_loss", "completions/mean_length", "critic/score/mean", "kl", "perf/mfu", "reward"],
        ),
    ],
)
def test_metrics_asked_for(patterns, names):
    found, notes = chosen(patterns, VERL, TRL)
    assert [*found] == names
    assert notes == []


def test_names():
    assert names_of([VERL, TRL])[:3] == ["actor/kl_loss", "completions/mean_length", "critic/score/mean"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (
            "rewrad",
            r"no run has a metric 'rewrad'\. Did you mean 'reward'\? --list prints what the runs have",
        ),
        ("perf/mfo*", r"no run has a metric 'perf/mfo\*'\. Did you mean 'perf/mfu'\? --list"),
        ("zzz", r"no run has a metric 'zzz'\. --list"),
    ],
)
def test_unknown_metrics(pattern, text):
    with pytest.raises(InputError, match=text):
        chosen([pattern], VERL, TRL)


def test_nothing_to_draw():
    with pytest.raises(InputError, match=r"nothing to draw: no run has any of reward, kl, .*; --list prints"):
        chosen([], run("other", x=[1.0]))


def test_nothing_logged_yet():
    """A run of TRL's that ended before the first of its `logging_steps`."""
    with pytest.raises(
        InputError, match=r"nothing to draw: nothing has been logged yet; .* `logging_steps`, 10 "
    ):
        chosen([], run("short"))


@pytest.mark.parametrize("number", range(1, 8))
def test_no_empty_frames(number, monkeypatch):
    """Three panels stand abreast; what a last row has no panel for is left blank."""
    figure = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: figures.append(self))
    names = [f"metric{i}" for i in range(number)]
    panels = choose([run("one", **{name: [1.0, 2.0] for name in names})], names, Problems())
    draw(panels, ["one"], 0.0)
    seen = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [len(axes.lines) for axes in seen] == [1] * number


def test_smoothing():
    """By hand with w = 1/2: 4; (2 + 1) / (3/2); a gap; (1 + 1/2 + 7) / (7/4)."""
    np.testing.assert_allclose(smooth(np.array([4.0, 1.0, np.nan, 7.0]), 0.5), [4.0, 2.0, np.nan, 8.5 / 1.75])
    np.testing.assert_array_equal(smooth(np.array([4.0, np.nan, 7.0]), 0.0), [4.0, np.nan, 7.0])
    np.testing.assert_allclose(smooth(np.full(9, 3.0), 0.9), 3.0)


def test_table():
    panels = choose([VERL, TRL], ["reward", "kl"], Problems())
    assert table.summary(panels, ["verl", "trl"]).splitlines() == [
        "curve   run   steps  gaps  first  last  best  at step",
        "reward  verl      3     0   0.25   0.5  0.75        2",
        "reward  trl       1     1    0.5   0.5   0.5        1",
        "kl      verl      1     0    0.1   0.1     -        -",
        "kl      trl       1     0    0.2   0.2     -        -",
    ]


def test_table_of_what_a_run_lacks():
    nothing = run("all gaps", perf__mfu=[math.inf, 1e101])
    panels = choose([VERL, TRL, nothing], ["perf/mfu"], Problems())
    assert table.summary(panels, ["verl", "trl", "all gaps"]).splitlines()[1:] == [
        "perf/mfu  verl          1     0      3     3     -        -",
        "perf/mfu  trl           -     -      -     -     -        -",
        "perf/mfu  all gaps      0     2      -     -     -        -",
    ]


def test_csv(tmp_path):
    third = run("thirds", reward=[1 / 3])
    written = table.as_csv(choose([VERL, TRL, third], ["reward"], Problems()))
    (tmp_path / "x.csv").write_bytes(written)
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["concept", "run", "metric", "step", "value"]
    assert rows[1:] == [
        ["reward", "verl", "critic/score/mean", "1", "0.25"],
        ["reward", "verl", "critic/score/mean", "2", "0.75"],
        ["reward", "verl", "critic/score/mean", "3", "0.5"],
        ["reward", "trl", "reward", "1", "0.5"],
        ["reward", "trl", "reward", "2", "nan"],
        ["reward", "thirds", "reward", "1", rows[-1][-1]],
    ]
    assert float(rows[-1][-1]) == 1 / 3
