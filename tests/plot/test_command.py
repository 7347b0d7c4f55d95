"""``rl-estimators plot``: what it prints, what it draws, what it refuses."""

import builtins
import os
import subprocess
import sys

import numpy as np
import pytest

from rl_estimators import cli
from rl_estimators.commands import plot
from rl_estimators.plot import draw

pytest.importorskip("matplotlib")
BLUE, ORANGE = "#0072B2", "#D55E00"


def share(path, colour):
    """The share of a picture's pixels that have a colour."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    return float((np.abs(pixels - to_rgb(colour)) < 0.01).all(-1).mean())


def test_table_picture_and_numbers(rewards, tmp_path, capsys):
    rewards("a.jsonl", [0.1, 0.2, 0.3])
    rewards("b.jsonl", [0.3, 0.25])
    picture, numbers = tmp_path / "out.png", tmp_path / "out.csv"
    assert cli.main(["plot", str(tmp_path), "-o", str(picture), "--csv", str(numbers)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "curve   run  steps  gaps  first  last  best  at step",
        "reward  a        3     0    0.1   0.3   0.3        3",
        "reward  b        2     0    0.3  0.25   0.3        1",
        f"written: {picture}, {numbers}",
    ]
    assert (
        printed.err.splitlines()[0]
        == "kl: no run has actor/reward_kl_penalty or actor/kl_loss or kl; left out"
    )
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert share(picture, BLUE) > 0.001
    assert share(picture, ORANGE) > 0.001
    assert len(numbers.read_text().splitlines()) == 6


def test_smoothing_leaves_the_values_faintly_visible(rewards, tmp_path):
    """A zigzag between 0 and 1 is smoothed to a line near 1/2; the zigzag itself stays, in a pale blue."""
    path = rewards("a.jsonl", [step % 2 for step in range(100)])
    pale = tuple(1 - 0.25 * (1 - part) for part in (0x00 / 255, 0x72 / 255, 0xB2 / 255))
    full, faint = {}, {}
    for smooth in ("0", "0.99"):
        assert cli.main(["plot", str(path), "-o", str(tmp_path / "out.png"), "--smooth", smooth]) == 0
        full[smooth], faint[smooth] = share(tmp_path / "out.png", BLUE), share(tmp_path / "out.png", pale)
    assert full["0"] > 5 * full["0.99"] > 0
    assert faint["0.99"] > 5 * faint["0"]


def test_metrics_are_listed(verl_log, capsys):
    path = verl_log("a.jsonl", [{"b": 1.0, "a": 2.0}])
    assert cli.main(["plot", str(path), "--list"]) == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_a_gap_is_no_line_and_a_point_between_gaps_a_dot(verl_log, tmp_path):
    """Each fourth number is known: without the dots nothing would be drawn."""
    path = verl_log("a.jsonl", [{"x": 1.0 if step % 4 == 0 else None} for step in range(400)])
    assert cli.main(["plot", str(path), "-o", str(tmp_path / "dots.png"), "-m", "x"]) == 0
    path = verl_log("b.jsonl", [{"x": None} for _ in range(400)])
    assert cli.main(["plot", str(path), "-o", str(tmp_path / "none.png"), "-m", "x"]) == 0
    assert share(tmp_path / "dots.png", BLUE) > 2 * share(tmp_path / "none.png", BLUE)


@pytest.mark.filterwarnings("error")
def test_hostile_names_and_numbers_are_drawn(verl_log, tmp_path):
    row = {
        "$\\frac{$": 1e308,
        "_hidden" + "x" * 300: -1e308,
        "tiny": 5e-324,
        "actor/entropy": 10**400,
        "e\x1b[2J": 1.0,
    }
    path = verl_log("$\\frac{$.jsonl", [row, {**row, "tiny": 0.0}, {"actor/entropy": 2}])
    assert cli.main(["plot", str(path), "-o", str(tmp_path / "out.png"), "-m", "*", "-m", "entropy"]) == 0


@pytest.mark.filterwarnings("error")
def test_as_many_runs_as_can_be_told_apart(rewards, tmp_path):
    for number in range(draw.MOST_RUNS):
        rewards(f"runs/{'long' * 20}_{number}.jsonl", [number, number + 1])
    assert cli.main(["plot", str(tmp_path / "runs"), "-o", str(tmp_path / "out.png")]) == 0


@pytest.mark.parametrize(("lowest", "cut_off"), [(-30.0, True), (-0.9, False)])
def test_explained_variance_is_cut_off_far_below_zero(lowest, cut_off):
    from matplotlib.figure import Figure

    from rl_estimators.files.problems import Problems
    from rl_estimators.plot.panels import choose
    from rl_estimators.plot.runs import Run, Series

    run = Run("run", {"critic/vf_explained_var": Series(np.arange(3), np.array([lowest, 0.1, 0.5]))})
    (panel,) = choose([run], ["explained_variance"], Problems())
    axes = Figure().subplots()
    draw._panel(axes, panel, {"run": {}}, 0.0)
    assert (axes.get_ylim()[0] == -1.0) == cut_off
    title = "critic's explained variance" + (" (cut off below -1)" if cut_off else "")
    assert axes.get_title(loc="left") == title


class TestRefused:
    def refused(self, capsys, *words):
        assert cli.main(["plot", *map(str, words)]) == 2
        return capsys.readouterr().err

    def test_smooth(self, capsys, tmp_path):
        text = "rl-estimators plot: plot: --smooth is 1.0, expected a number in [0, 0.999]\n"
        assert self.refused(capsys, tmp_path, "--smooth", "1") == text

    def test_no_png(self, capsys, tmp_path):
        text = "--output x.svg: the picture is a PNG; give it a name that ends in .png\n"
        assert self.refused(capsys, tmp_path, "-o", "x.svg").endswith(text)

    def test_no_folder(self, capsys, tmp_path):
        text = f"{tmp_path}/a/b.png: there is no folder {tmp_path}/a\n"
        assert self.refused(capsys, tmp_path, "-o", tmp_path / "a" / "b.png").endswith(text)

    def test_cannot_be_written(self, capsys, rewards, tmp_path):
        (tmp_path / "x.csv").mkdir()
        path = rewards("a.jsonl", [1.0])
        words = (path, "-o", tmp_path / "x.png", "--csv", tmp_path / "x.csv")
        assert self.refused(capsys, *words).endswith(
            f"{tmp_path}/x.csv: cannot be written (Is a directory)\n"
        )

    def test_a_disk_that_is_full(self, capsys, rewards, tmp_path, monkeypatch):
        """What was there before still is."""

        def replace(self, target):
            raise OSError(28, "No space left on device")

        path = rewards("a.jsonl", [1.0])
        (tmp_path / "x.png").write_bytes(b"before")
        monkeypatch.setattr("pathlib.Path.replace", replace)
        text = f"{tmp_path}/x.png: cannot be written (No space left on device)\n"
        assert self.refused(capsys, path, "-o", tmp_path / "x.png").endswith(text)
        assert (tmp_path / "x.png").read_bytes() == b"before"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "x.png"]

    def test_a_log_is_not_overwritten(self, capsys, rewards, tmp_path):
        path = rewards("a.jsonl", [1.0])
        before = path.read_text()
        text = f"{path}: it is the log of a run, and would be lost; write somewhere else\n"
        assert self.refused(capsys, tmp_path, "-o", tmp_path / "x.png", "--csv", path).endswith(text)
        assert path.read_text() == before

    def test_too_many_runs(self, capsys, rewards, tmp_path):
        for number in range(25):
            rewards(f"{number}.jsonl", [1.0])
        text = "25 runs are more than the 24 that a picture can tell apart; name fewer\n"
        assert self.refused(capsys, tmp_path, "-o", tmp_path / "x.png").endswith(text)

    def test_too_many_metrics(self, capsys, verl_log, tmp_path):
        path = verl_log("a.jsonl", [{f"x{number}": 1.0 for number in range(61)}])
        text = "61 metrics are more than the 60 that a picture can hold; ask for fewer by --metric\n"
        assert self.refused(capsys, path, "-m", "x*", "-o", tmp_path / "x.png").endswith(text)

    def test_strict(self, capsys, rewards):
        path = rewards("a.jsonl", [1.0])
        path.write_text("[]\n" + path.read_text())
        assert "line 1: expected" in self.refused(capsys, path, "--strict")

    def test_without_matplotlib(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(plot, "find_spec", lambda name: None)
        text = "pictures need matplotlib, which is not installed: pip install 'rl-estimators[see]'\n"
        assert self.refused(capsys, tmp_path).endswith(text)


def test_links_stay_and_what_is_no_file_is_written_to(rewards, tmp_path):
    path, real, link, pipe = (tmp_path / name for name in ("a.jsonl", "real.png", "link.png", "pipe"))
    rewards("a.jsonl", [1.0])
    real.write_bytes(b"before")
    link.symlink_to(real)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert cli.main(["plot", str(path), "-o", str(link), "--csv", str(pipe)]) == 0
    assert link.is_symlink()
    assert real.read_bytes().startswith(b"\x89PNG")
    assert os.read(reader, 1000).startswith(b"concept,run,metric,step,value\r\n")
    os.close(reader)
    assert pipe.is_fifo()


def test_no_pickle_is_ever_read(tmp_path, rewards, capsys, monkeypatch):
    """A checkpoint's other files lie beside its log; whatever is in them is not run."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (builtins.exec, ("raise SystemExit('ran')",))

    rewards("out/log.jsonl", [1.0])
    for name in ("optimizer.pt", "events.out.tfevents.1", "trainer_state.json"):
        (tmp_path / "out" / name).write_bytes(pickle.dumps(Bomb()))
    assert cli.main(["plot", str(tmp_path / "out"), "--list"]) == 0
    assert capsys.readouterr().out == "critic/score/mean\n"


def test_the_command_stays_light():
    code = (
        "import sys; from rl_estimators.commands import plot; "
        "print(sorted({'matplotlib', 'tensorboard', 'pyarrow'} & {*sys.modules}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
