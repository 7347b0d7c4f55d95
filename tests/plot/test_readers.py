"""Each format of log: what is in it is read, what cannot be read is told with its place and reason."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from rl_estimators.errors import InputError
from rl_estimators.files.plain import escaped
from rl_estimators.files.problems import Problems
from rl_estimators.plot import event_file, trainer_state
from rl_estimators.plot import verl_log as verl_logs
from rl_estimators.plot.problems import IN_LOGS
from rl_estimators.plot.runs import Points


def read(reader, path, strict=False):
    points, problems = Points(), Problems(strict, IN_LOGS)
    reader.read(path, points, problems)
    run = points.run("run", problems)
    return {
        name: dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for name, series in run.metrics.items()
    }, problems.lines()


class TestVerl:
    def test_numbers(self, verl_log):
        path = verl_log(
            "a.jsonl", [{"x": 0.5, "text": "no number", "flag": True}, {"x": 2, "y": -1e-3}], start=0
        )
        assert read(verl_logs, path) == ({"x": {0: 0.5, 1: 2.0}, "y": {1: -1e-3}}, [])

    def test_null_is_a_gap(self, verl_log):
        """orjson writes NaN as null."""
        found, notes = read(verl_logs, verl_log("a.jsonl", [{"x": 1.0}, {"x": None}]))
        np.testing.assert_equal(found["x"], {1: 1.0, 2: np.nan})
        assert notes == []

    def test_a_byte_order_mark(self, rewards):
        path = rewards("a.jsonl", [0.25])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert read(verl_logs, path) == ({"critic/score/mean": {1: 0.25}}, [])
        assert verl_logs.is_verl_log(path.read_bytes())

    def test_malformed_lines_are_told_and_skipped(self, rewards):
        path = rewards("a.jsonl", [0.25, 0.5])
        bad = [
            b"{broken",
            b"\xff\xfe",
            b"[1]",
            b'{"step": 1}',
            b'{"step": "one", "data": {}}',
            b'{"step": 1.5, "data": {"x": 1}}',
            b'{"step": 3, "data": {"x": ' + b"9" * 5000 + b"}}",
            b"[" * 100_000,
        ]
        path.write_bytes(path.read_bytes() + b"\n".join(bad) + b"\n\n" + b'{"step": 9, "data": {"x": 7}}\n')
        found, notes = read(verl_logs, path)
        assert found == {"critic/score/mean": {1: 0.25, 2: 0.5}, "x": {9: 7.0}}
        assert notes[0].startswith(f"{path}: line 3: no JSON (Expecting property name")
        assert notes[1:5] == [
            f"{path}: line 4: no UTF-8 text; skipped",
            f'{path}: line 5: expected {{"step": ..., "data": {{...}}}}; skipped',
            f'{path}: line 6: expected {{"step": ..., "data": {{...}}}}; skipped',
            f"{path}: line 7: its step is no whole number; skipped",
        ]
        assert notes[5:] == [f"{path}: 3 more skipped, 8 in all"]

    def test_strict(self, rewards):
        path = rewards("a.jsonl", [0.25])
        path.write_bytes(path.read_bytes() + b"nonsense\n")
        with pytest.raises(
            InputError, match=r"a\.jsonl: line 2: no JSON .*; without --strict it would be skipped"
        ):
            read(verl_logs, path, strict=True)

    @pytest.mark.parametrize("strict", [False, True])
    def test_a_last_line_that_breaks_off_is_normal(self, rewards, strict):
        path = rewards("a.jsonl", [0.25, 0.5])
        path.write_bytes(path.read_bytes()[:-9])
        found, notes = read(verl_logs, path, strict)
        assert found == {"critic/score/mean": {1: 0.25}}
        assert notes == [f"{path}: line 2, the last, breaks off: a job is writing it, or was stopped"]

    def test_a_last_line_without_its_end_counts_if_it_is_whole(self, rewards):
        path = rewards("a.jsonl", [0.25, 0.5])
        path.write_bytes(path.read_bytes()[:-1])
        assert read(verl_logs, path) == ({"critic/score/mean": {1: 0.25, 2: 0.5}}, [])

    def test_long_lines_are_left_out(self, rewards, monkeypatch):
        path = rewards("a.jsonl", [0.25])
        whole = path.read_bytes()
        monkeypatch.setattr(verl_logs, "LONGEST_LINE", 100)
        fits = b'{"step": 3, "data": {"x": 1}}'.ljust(99) + b"\n"
        path.write_bytes(whole + b'{"step": 2, "data": {"x": 1' + b" " * 5000 + b"}}\n" + fits)
        found, notes = read(verl_logs, path)
        assert found == {"critic/score/mean": {1: 0.25}, "x": {3: 1.0}}
        assert notes == [f"{path}: line 2: longer than 100 bytes; skipped"]

    def test_a_huge_line_is_never_held(self, rewards):
        path = rewards("a.jsonl", [0.25])
        with path.open("ab") as file:
            file.truncate(file.tell() + 2**25)  # a line of zeros without end
        tracemalloc.start()
        found, notes = read(verl_logs, path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found == {"critic/score/mean": {1: 0.25}}
        assert notes == [f"{path}: line 2: longer than {2**20} bytes; skipped"]
        assert peak < 2**23

    def test_steps_logged_again(self, rewards):
        """After a resume from step 2 the log goes on with step 3; equal numbers leave nothing to choose."""
        path, again = (
            rewards("a.jsonl", [1.0, 2.0, 3.0, 4.0]),
            rewards("b.jsonl", [2.0, 3.5, 4.5, 5.5], start=2),
        )
        path.write_bytes(path.read_bytes() + again.read_bytes())
        found, notes = read(verl_logs, path)
        assert found == {"critic/score/mean": {1: 1.0, 2: 2.0, 3: 3.5, 4: 4.5, 5: 5.5}}
        assert notes == [
            "run: other numbers were logged again for 2 of the steps from 3 to 4, after a resume say: the later ones count"
        ]

    def test_numbers_without_bound(self, verl_log):
        path = verl_log("a.jsonl", [{"x": 10**400, "y": -(10**400)}])
        assert read(verl_logs, path)[0] == {"x": {1: np.inf}, "y": {1: -np.inf}}


class TestState:
    def test_numbers(self, state):
        path = state(
            "trainer_state.json",
            [{"step": 1, "reward": 0.5, "epoch": 0.1}, {"step": 2, "reward": 1, "x": "?"}],
        )
        assert read(trainer_state, path) == ({"reward": {1: 0.5, 2: 1.0}, "epoch": {1: 0.1}}, [])

    def test_what_transformers_logs_twice_alike_is_no_resume(self, state):
        path = state(
            "s.json", [{"step": 1, "reward": 0.5, "epoch": 0.1}, {"step": 1, "eval_reward": 1, "epoch": 0.1}]
        )
        assert read(trainer_state, path)[1] == []

    def test_entries_without_a_step(self, state):
        path = state("s.json", [{"reward": 0.5}, 3, {"step": 2, "reward": 1.0}])
        found, notes = read(trainer_state, path)
        assert found == {"reward": {2: 1.0}}
        assert notes == [f"{path}: entry {n} of log_history: it has no step; skipped" for n in (1, 2)]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"log_history": [', "no JSON (Expecting value"),
            ('{"log_history": 3}', "its log_history is no list"),
            ("[]", "its log_history is no list"),
            ("[" * 100_000, "no JSON (maximum recursion depth exceeded"),
        ],
    )
    def test_what_cannot_be_read(self, tmp_path, text, reason):
        path = tmp_path / "s.json"
        path.write_text(text)
        found, (note,) = read(trainer_state, path)
        assert found == {}
        assert note.startswith(f"{path}: the file: {reason}")
        with pytest.raises(InputError, match="without --strict it would be skipped"):
            read(trainer_state, path, strict=True)

    def test_size(self, state, monkeypatch):
        monkeypatch.setattr(trainer_state, "LARGEST_FILE", 10)
        path = state("s.json", [])
        assert read(trainer_state, path) == ({}, [f"{path}: the file: larger than 10 bytes; skipped"])


class TestEvents:
    @pytest.mark.parametrize("how", [{}, {"new_style": True}, {"new_style": True, "double_precision": True}])
    def test_numbers(self, events, how):
        path = events("a", [{"x": 0.5}, {"x": -0.25, "y": float("nan")}], **how)
        found, notes = read(event_file, path)
        np.testing.assert_equal(found, {"x": {1: 0.5, 2: -0.25}, "y": {2: np.nan}})
        assert notes == []

    def test_names_are_as_transformers_keeps_them(self, events):
        path = events("a", [{"train/reward": 1.0, "eval/reward": 2.0, "training/x": 3.0}])
        assert read(event_file, path)[0] == {
            "reward": {1: 1.0},
            "eval_reward": {1: 2.0},
            "training/x": {1: 3.0},
        }

    def test_texts_are_no_numbers(self, tmp_path):
        pytest.importorskip("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_text("args", "{}")
            writer.add_scalar("x", 1.0, 3)
        (path,) = tmp_path.iterdir()
        assert read(event_file, path) == ({"x": {3: 1.0}}, [])

    @pytest.mark.parametrize("missing", [1, 10, 30])
    def test_a_last_record_that_breaks_off_is_normal(self, events, missing):
        path = events("a", [{"x": 0.5}, {"x": 1.5}])
        path.write_bytes(path.read_bytes()[:-missing])
        found, notes = read(event_file, path, strict=True)
        assert found == {"x": {1: 0.5}}
        assert notes == [f"{path}: record 3, the last, breaks off: a job is writing it, or was stopped"]

    def test_damage(self, events):
        path = events("a", [{"x": 0.5}, {"x": 1.5}, {"x": 2.5}])
        whole = path.read_bytes()
        second = whole.rindex(struct.pack("<f", 1.5))
        path.write_bytes(whole[:second] + b"\0" + whole[second + 1 :])
        found, notes = read(event_file, path)
        assert found == {"x": {1: 0.5, 2: 1.5, 3: 2.5}}, "the lowest byte of 1.5 is 0 as it is"
        path.write_bytes(whole[: second + 3] + b"\0" + whole[second + 4 :])
        found, notes = read(event_file, path)
        assert found == {"x": {1: 0.5, 3: 2.5}}
        assert notes == [f"{path}: record 3: damaged: the check sum does not fit; skipped"]
        with pytest.raises(InputError, match="record 3: damaged"):
            read(event_file, path, strict=True)

    def test_damage_in_a_length_ends_the_file(self, events):
        path = events("a", [{"x": 0.5}, {"x": 1.5}])
        whole = path.read_bytes()
        end_of_first = 12 + struct.unpack("<Q", whole[:8])[0] + 4
        path.write_bytes(whole[:end_of_first] + b"\xff" * 8 + whole[end_of_first + 8 :])
        found, notes = read(event_file, path)
        assert found == {}
        assert notes == [f"{path}: record 2 and all after it: damaged: the check sum does not fit; skipped"]

    def test_records_that_are_no_events_or_too_long(self, events, monkeypatch):
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = events("a", [{"x": 0.5}])
        monkeypatch.setattr(event_file, "LONGEST_RECORD", 200)
        with path.open("ab") as file:
            RecordWriter(file).write(b"\xff" * 50)
            RecordWriter(file).write(b"\0" * 300)
        more = events("b", [{}, {"x": 2.0}])
        path.write_bytes(path.read_bytes() + more.read_bytes())
        found, notes = read(event_file, path)
        assert found == {"x": {1: 0.5, 2: 2.0}}
        assert notes == [
            f"{path}: record 3: no event of TensorBoard; skipped",
            f"{path}: record 4: longer than 200 bytes; skipped",
        ]

    def test_a_step_beyond_fp64(self, events):
        path = events("a", [{"x": 0.5}], start=2**60)
        assert read(event_file, path) == ({}, [f"{path}: record 2: its step is {2**60}; skipped"])

    def test_a_length_that_lies_reads_nothing(self, events):
        """With a check sum that fits: only the file's size gives it away."""
        from tensorboard.summary.writer.record_writer import masked_crc32c

        path = events("a", [{"x": 0.5}])
        size = struct.pack("<Q", 2**62)
        path.write_bytes(path.read_bytes() + size + struct.pack("<I", masked_crc32c(size)) + b"abc")
        found, notes = read(event_file, path)
        assert found == {"x": {1: 0.5}}
        assert notes == [f"{path}: record 3, the last, breaks off: a job is writing it, or was stopped"]

    def test_without_tensorboard(self, events, monkeypatch):
        import sys

        path = events("a", [{"x": 0.5}])
        monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
        with pytest.raises(
            InputError, match=r"is an event file of TensorBoard, and .* pip install 'rl-estimators\[see\]'"
        ):
            read(event_file, path)


def test_names_cannot_command_a_terminal():
    assert escaped("reward \x1b[31m\ud800é") == r"reward \x1b[31m\ud800é"


def test_names_are_made_printable_when_read(verl_log):
    path = verl_log("a.jsonl", [{"\x1b]0;x": 1.0}])
    assert json.loads(path.read_text())["data"] == {"\x1b]0;x": 1.0}
    assert read(verl_logs, path)[0] == {r"\x1b]0;x": {1: 1.0}}
