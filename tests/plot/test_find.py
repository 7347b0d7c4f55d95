"""Which logs are found in a folder, and what their runs are called."""

import pytest

from rl_estimators.errors import InputError
from rl_estimators.files.problems import Problems
from rl_estimators.plot import event_file
from rl_estimators.plot.find import load
from rl_estimators.plot.problems import IN_LOGS


def found(*paths, notes=()):
    """Each run's name and its last number of the metric ``x``, or of verl's reward."""
    problems = Problems(manner=IN_LOGS)
    runs = load(paths, problems)
    assert problems.lines() == list(notes)
    metrics = {run.name: run.metrics.get("x", run.metrics.get("critic/score/mean")) for run in runs}
    return {name: series.values[-1] for name, series in metrics.items()}


def test_formats_are_told_by_content(tmp_path, rewards, state, events):
    rewards("a/log.txt", [1.0])
    state("b/any.name", [{"step": 1, "x": 2.0}])
    events("c", [{"x": 3.0}]).rename(tmp_path / "c" / "renamed")
    assert found(tmp_path) == {"a/log.txt": 1.0, "b": 2.0, "c": 3.0}


def test_other_files_are_left_alone(tmp_path, rewards):
    rewards("run.jsonl", [1.0])
    rewards(".hidden/run.jsonl", [5.0])
    (tmp_path / "train.jsonl").write_text('{"prompt": "3 1 2"}\n' * 30)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken_link").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == {tmp_path.name: 1.0}


def test_a_run_by_itself_has_the_name_that_was_asked_for(tmp_path, rewards, monkeypatch):
    path = rewards("project/experiment.jsonl", [1.0])
    assert found(path) == {"experiment": 1.0}
    assert found(tmp_path / "project") == {"project": 1.0}
    monkeypatch.chdir(tmp_path / "project")
    assert found(type(path)()) == {"project": 1.0}


def test_several_runs_are_told_apart_by_what_their_paths_do_not_share(tmp_path, rewards):
    paths = [rewards(f"deep/{name}.jsonl", [number]) for name, number in (("a/x", 1.0), ("b/x", 2.0))]
    assert found(*paths) == found(tmp_path) == {"a/x": 1.0, "b/x": 2.0}


def test_files_that_differ_in_their_endings_are_two_runs(tmp_path, rewards):
    for name, number in (("a.jsonl", 1.0), ("a.txt", 2.0)):
        rewards(name, [number])
    assert found(tmp_path) == {"a": 1.0, "a.txt": 2.0}


def test_what_is_named_twice_is_one_run(tmp_path, rewards):
    path = rewards("a.jsonl", [1.0, 2.0])
    path.write_bytes(path.read_bytes()[:-5])
    note = f"{path}: line 2, the last, breaks off: a job is writing it, or was stopped"
    assert found(tmp_path, path, tmp_path / "." / "a.jsonl", notes=[note]) == {tmp_path.name: 1.0}


def test_one_place_two_formats(rewards, events, tmp_path):
    rewards("a.jsonl", [1.0])
    events("a", [{"x": 2.0}])
    assert found(tmp_path) == {"a (verl's file logger)": 1.0, "a (event files)": 2.0}


def test_event_files_of_a_folder_are_one_run_in_the_order_of_time(tmp_path, events):
    first = events("a", [{"x": 1.0}, {"x": 2.0}])
    second = events("a", [{"x": 3.0}, {"x": 4.0}], start=2)
    first.rename(tmp_path / "a" / "z")  # names do not decide
    assert event_file.started((tmp_path / "a" / "z").read_bytes()) < event_file.started(second.read_bytes())
    note = "other numbers were logged again for 1 of the steps from 2 to 2, after a resume say: the later ones count"
    assert found(tmp_path / "a", notes=[f"a: {note}"]) == {"a": 4.0}
    (run,) = load([tmp_path / "a"], Problems())
    assert run.metrics["x"].values.tolist() == [1.0, 3.0, 4.0]


class TestStates:
    def test_the_last_checkpoint_holds_them_all(self, tmp_path, state):
        for number in (2, 10, 9):
            state(f"out/checkpoint-{number}/trainer_state.json", [{"step": number, "x": float(number)}])
        assert found(tmp_path / "out") == {"out": 10.0}

    @pytest.mark.parametrize(("saved", "last"), [(12, 12.0), (8, 10.0)])
    def test_what_was_saved_beside_the_checkpoints(self, tmp_path, state, saved, last):
        """``save_state`` at the end of training, or of an earlier one in the same folder."""
        state("out/checkpoint-10/trainer_state.json", [{"step": 10, "x": 10.0}])
        state("out/trainer_state.json", [{"step": saved, "x": float(saved)}])
        assert found(tmp_path) == {tmp_path.name: last}

    def test_one_checkpoint_asked_for(self, tmp_path, state):
        for number in (2, 10):
            path = state(
                f"out/checkpoint-{number}/trainer_state.json", [{"step": number, "x": float(number)}]
            )
        assert found(path.parents[1] / "checkpoint-2") == {"checkpoint-2": 2.0}
        assert found(tmp_path / "out/checkpoint-2/trainer_state.json") == {"out": 2.0}

    def test_event_files_that_went_as_far(self, tmp_path, state, events):
        state("out/checkpoint-2/trainer_state.json", [{"step": 2, "x": 1.0}])
        events("out/runs/Jul01_host", [{"train/x": 3.0}] * 3)
        note = (
            f"{tmp_path}/out: its trainer_state.json is left out: the event files in {tmp_path}/out/runs/Jul01_host went "
            "as far"
        )
        assert found(tmp_path / "out", notes=[note]) == {"out": 3.0}

    def test_event_files_of_an_earlier_session(self, tmp_path, state, events):
        state("out/checkpoint-9/trainer_state.json", [{"step": 9, "x": 1.0}])
        events("out/runs/Jul01_host", [{"train/x": 3.0}] * 3)
        assert found(tmp_path) == {"out": 1.0, "out/runs/Jul01_host": 3.0}

    def test_runs_of_transformers_are_named_after_their_output_folder(self, tmp_path, events):
        events("a/runs/Jul01_host", [{"x": 1.0}])
        events("b/runs/Jul02_host", [{"x": 2.0}])
        events("b/runs/Jul03_host", [{"x": 3.0}])
        assert found(tmp_path) == {"a": 1.0, "b/runs/Jul02_host": 2.0, "b/runs/Jul03_host": 3.0}


class TestNothing:
    def test_no_such_path(self, tmp_path):
        with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
            load([tmp_path / "nowhere"], Problems())

    def test_no_log(self, tmp_path):
        text = r"no log of a run in it; known are verl's file logger \(trainer.logger=\[file\]\), TensorBoard's event"
        with pytest.raises(InputError, match=text):
            load([tmp_path], Problems())

    def test_unreadable(self, rewards, tmp_path, monkeypatch):
        path = rewards("a.jsonl", [1.0])
        rewards("b.jsonl", [2.0])
        real = type(path).open

        def refuse(self, *args, **more):
            if self.name == "a.jsonl":
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **more)

        monkeypatch.setattr(type(path), "open", refuse)
        note = f"{path}: the file: cannot be read (Permission denied); skipped"
        assert found(tmp_path, notes=[note]) == {tmp_path.name: 2.0}
        with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
            load([path], Problems())

    def test_unreadable_folder(self, rewards, tmp_path, monkeypatch):
        import os

        rewards("a.jsonl", [1.0])
        (tmp_path / "closed").mkdir()
        real = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", refuse)
        note = f"{tmp_path}/closed: the folder: cannot be read (Permission denied); skipped"
        assert found(tmp_path, notes=[note]) == {tmp_path.name: 1.0}
