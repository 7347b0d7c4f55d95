"""TRL's completions: Parquet made by hand, and files of a real training."""

import contextlib
import math

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from rl_estimators.compare import Problems, Reader, all_choices, compare, read_choices
from rl_estimators.compare.weights import Weights
from rl_estimators.errors import InputError

NAN = math.nan
COLUMNS = {
    "step": [4, 4, 4],
    "prompt": ["1+1?", "1+1?", "2+2?"],
    "completion": ["it is 2", "3", "4"],
    "right": [1.0, 0.0, 1.0],
    "brief": [0.5, None, 0.25],
    "answer": ["2", "3", "4"],
    "length": [3, 1, 1],
    "advantage": [0.7, -0.7, 0.0],
}


@pytest.fixture
def write(tmp_path):
    def run(name="completions_00004.parquet", without=(), **columns):
        table = {name: values for name, values in {**COLUMNS, **columns}.items() if name not in without}
        (tmp_path / "completions").mkdir(exist_ok=True)
        path = tmp_path / "completions" / name
        pq.write_table(pa.table(table), path)
        return path

    return run


def read(*paths, **options):
    return list(Reader(**options).read(paths))


class TestByHand:
    def test_rewards_are_the_columns_of_floats(self, write):
        """1 + .5; 0, for brief does not apply; 1 + .25. What is logged on the side, and whole numbers, are none."""
        (found,) = read(write())
        assert found.inputs["token_level_rewards"].sum(-1).tolist() == [1.5, 0, 1.25]
        assert found.components == ["right", "brief"]
        assert (found.step, found.format) == (4, "TRL's logged completions")
        assert list(found.inputs["index"]) == ["1+1?", "1+1?", "2+2?"]
        assert "reward = right + brief" in found.notes
        assert found.logged.tolist() == [0.7, -0.7, 0.0]

    def test_weights_by_name_leave_out_the_others(self, write):
        (found,) = read(write(), weights=Weights("right=2,length=0.5"))
        assert found.inputs["token_level_rewards"].sum(-1).tolist() == [3.5, 0.5, 2.5]
        assert "reward = 2 * right + 0.5 * length" in found.notes

    def test_what_the_run_logged_stands_beside(self, write):
        (found,) = read(write())
        compared = compare(found, read_choices(["rloo"]))
        assert list(compared.advantages) == ["rloo", "logged"]
        assert compared.advantages["logged"].sum(-1).tolist() == pytest.approx([0.7 * 3, -0.7, 0])

    def test_a_completion_that_no_function_scored(self, write):
        """TRL logs NaN for its advantage, or 0, and pandas writes NaN as null."""
        (found,) = read(write(right=[1.0, None, 1.0], brief=[0.5, None, 0.25], advantage=[0.7, None, 0.0]))
        compared = compare(found, read_choices(["rloo"]))
        assert compared.excluded == {"rloo": 1, "logged": 1}
        assert compared.advantages["logged"][1].tolist() == [0, 0, 0]

    def test_messages(self, write):
        prompt = [[{"role": "user", "content": "1+1?"}]] * 3
        completion = [
            [{"role": "assistant", "content": "two"}],
            [
                {"role": "assistant", "content": "let me see"},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "2"},
            ],
            [{"role": "assistant", "content": ""}],
        ]
        (found,) = read(write(prompt=prompt, completion=completion))
        assert found.prompts == ["1+1?"] * 3
        assert found.inputs["response_mask"].int().tolist() == [
            [1, 0, 0, 0, 0],
            [1, 1, 1, 0, 1],
            [1, 0, 0, 0, 0],
        ]
        assert len({*found.inputs["index"]}) == 1

    def test_a_runs_folder_is_its_completions(self, write, tmp_path):
        write("completions_00010.parquet", step=[10] * 3, advantage=[0.0] * 3)
        write("completions_00009.parquet", step=[9] * 3)
        pq.write_table(pa.table({"x": [1]}), tmp_path / "data.parquet")
        assert [found.step for found in read(tmp_path)] == [9, 10]

    def test_a_batch_that_is_logged_again_counts_once(self, write, tmp_path):
        """TRL logs its last completions at each update; several updates on one batch repeat them."""
        for step in (4, 5, 6, 7):
            write(f"completions_0000{step}.parquet", step=[step] * 3, right=[1.0, 0.0, float(step == 7)])
        problems = Problems()
        assert [found.step for found in read(tmp_path, problems=problems)] == [4, 7]
        (line,) = problems.lines()
        assert line.endswith(
            "completions_00005.parquet and 1 more: the completions of the step before, logged again, count once"
        )
        assert problems.count == 0

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"prompt": [1, 2, 3]}, "the column 'prompt' holds int64, expected text or lists of messages"),
            ({"completion": [["a"]] * 3}, "the column 'completion' holds list<"),
            ({"step": ["4"] * 3}, "the column 'step' holds string, expected numbers"),
            ({"advantage": [[0.0]] * 3}, "the column 'advantage' holds list<.*>, expected numbers"),
            (
                {"without": ["completion"]},
                "no completions of TRL: it has no column 'completion', but step, prompt",
            ),
            (
                {"without": ["right", "brief"]},
                r"no column holds a reward function's numbers \(floats\), only answer, length; name one with",
            ),
        ],
    )
    def test_columns_of_other_types(self, write, columns, message):
        with pytest.raises(InputError, match=message):
            read(write(**columns))

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ("rihgt=1", "there is no reward 'rihgt'. Did you mean 'right'"),
            ("answer=1", "the column 'answer' holds string, expected numbers"),
            ("1,2,3", "has 3 numbers, but there are 2 rewards: right, brief"),
        ],
    )
    def test_weights_that_do_not_fit(self, write, weights, message):
        with pytest.raises(InputError, match=message):
            read(write(), weights=Weights(weights))

    def test_a_row_that_cannot_be_read(self, write):
        problems = Problems()
        (found,) = read(write(completion=["a", None, "c"]), problems=problems)
        assert len(found.prompts) == 2
        assert problems.reasons[0].endswith(
            "parquet, row 2: completion is null, expected text or a list of messages"
        )

    def test_no_row_at_all(self, write):
        types = {
            "step": pa.int64(),
            "prompt": pa.string(),
            "completion": pa.string(),
            "advantage": pa.float64(),
        }
        path = write(**{name: pa.array([], types.get(name, pa.float64())) for name in COLUMNS})
        with pytest.raises(InputError, match="no row can be read: it has none"):
            read(path)

    def test_a_file_cut_short(self, write):
        path = write()
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match="no whole Parquet file, cut short or still being written"):
            read(path)

    def test_a_file_damaged_inside(self, write):
        path = write(completion=["a" * 5000, "b" * 5000, "c" * 5000])
        whole = path.read_bytes()
        for start in range(4, len(whole) - 200, 50):
            path.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])
            with contextlib.suppress(InputError):  # and nothing else
                read(path, problems=Problems())

    def test_without_pyarrow(self, write, monkeypatch):
        path = write()
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        with pytest.raises(
            InputError, match=r"reading Parquet needs pyarrow: pip install 'rl-estimators\[see\]'"
        ):
            read(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model of the tests of TRL."""
    pytest.importorskip("trl")
    import toy

    folder = tmp_path_factory.mktemp("tiny")
    toy.build(folder)
    return folder


@pytest.mark.trl
class TestWrittenByTRL:
    """Two steps of a real training each, with TRL's trainer and with ours."""

    def run(self, tiny, folder, ours):
        import toy
        import trl

        from rl_estimators.trl import EstimatorConfig, EstimatorTrainer

        config, trainer = (EstimatorConfig, EstimatorTrainer) if ours else (trl.GRPOConfig, trl.GRPOTrainer)
        own = {"adv_estimator": "rloo"} if ours else {}
        args = config(
            **toy.settings(folder, log_completions=True, max_steps=2, num_completions_to_print=0, **own)
        )
        done = toy.train(trainer, args, tiny, reward_funcs=[toy.reward, brevity])
        return done, read(folder)

    def test_trls_own(self, tiny, tmp_path, capsys):
        """TRL's GRPO and ours agree on what it logged; its rewards are summed over functions."""
        done, found = self.run(tiny, tmp_path, ours=False)
        assert [one.step for one in found] == [1, 2]
        checked = 0
        for one, mean in zip(found, done.column("reward"), strict=True):
            assert one.components == ["reward", "brevity"]
            scores = one.inputs["token_level_rewards"].sum(-1)
            assert scores.mean().item() == pytest.approx(mean, abs=1e-6)
            groups = {}
            for name in one.inputs["index"]:
                groups[name] = groups.get(name, 0) + 1
            assert all(size % 4 == 0 for size in groups.values())
            if len(groups) < 2:  # a prompt drawn twice is one group here and two in TRL
                continue
            compared = compare(one, read_choices(["grpo:compat=trl"]))
            ours, theirs = compared.advantages.values()
            assert (ours - theirs).abs().max() < 1e-5
            assert theirs.any()
            checked += 1
        assert checked

    def test_ours(self, tiny, tmp_path, capsys):
        """What our trainer logged is what our estimator gives here."""
        _, found = self.run(tiny, tmp_path, ours=True)
        assert [one.step for one in found] == [1, 2]
        for one in found:
            compared = compare(one, read_choices(["rloo"]))
            ours, theirs = compared.advantages.values()
            assert (ours - theirs).abs().max() < 1e-6
            assert {"grpo", "gdpo", "rloo"} <= {*compare(one, all_choices()).advantages}


def brevity(completions, **_):
    """A second reward function; it does not apply to what is long."""
    return [0.25 if len(text) < 5 else None for text in completions]
