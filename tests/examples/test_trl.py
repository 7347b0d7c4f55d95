"""The examples for TRL run, with little work; the comparison's verdict is right, and its table is the README's."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")
pytest.importorskip("matplotlib")

from rl_estimators.registry import ADV_ESTIMATORS  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("ppo", "grpo", "reinforce_pp", "remax", "own_estimator")


def forget():
    """The names under which the scripts see each other are too plain to stay."""
    for name in [one for one in sys.modules if one.startswith("example_")] + ["prepare", "reinforce_pp"]:
        sys.modules.pop(name, None)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Loads an example as a script would be: with its folder on the path. Nothing of it stays."""
    import datasets
    import torch
    from transformers.utils import logging

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "trl"), str(EXAMPLES), *sys.path])
    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", dict(ADV_ESTIMATORS._specs))
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / "trl" / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    forget()
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model and data."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXAMPLES / "trl"), str(EXAMPLES), *sys.path])
        import prepare

        prepare.main(folder)
    forget()
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_train(example, made, name, tmp_path):
    trainer = example(name).main(made, max_steps=5, disable_tqdm=True, seed=1)
    (reward,) = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert 0.4 < reward < 0.8  # mean of five steps; it begins at .57
    expected = {"ppo": "gae", "own_estimator": "better_than_median"}.get(name, name)
    assert trainer.estimator.name == expected


def test_scripts_are_short():
    for name in SCRIPTS:
        assert len((EXAMPLES / "trl" / f"{name}.py").read_text().splitlines()) <= 60


def test_scripts_have_the_reward_of_the_task(example):
    from digit_sort.reward import digits_in_place

    answers = {"completions": ["1248", "1284", "8421", "124", "12480", ""], "answer": ["1248"] * 6}
    for name in SCRIPTS:
        assert example(name).digits_in_place(**answers, prompts=[]) == digits_in_place(**answers)


def test_rewards_by_hand(example):
    from digit_sort.reward import digit_by_digit, digits_in_place

    given = {"completions": ["1248", "1284", "12", ""], "answer": ["1248"] * 4}
    ids = [[1, 2, 4, 8, 0], [1, 2, 8, 4, 0, 0], [1, 2], [0]]
    assert digits_in_place(**given, completion_ids=ids) == [1.0, 0.5, 0.25, 0.0]
    assert digit_by_digit(**given, completion_ids=ids) == [
        [0.25, 0.25, 0.25, 0.25, -1.0],
        [0.25, 0.25, 0.0, 0.0, 0.0, -0.5],
        [0.25, -0.25],  # the last token has a share of its own, and gives back .5
        [0.0],
    ]


def test_comparison_in_short(example, made, tmp_path, capsys):
    """One seed and 16 steps: everything rises by half of what the real thing asks for."""
    compare, picture = example("compare"), tmp_path / "picture.png"
    given = ["--seeds", "1", "--steps", "16", "--least-gain", "0.05"]
    code = compare.main([*given, "--folder", str(made), "--out", str(picture)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "run 6 of 6: random rewards, seed 0, step 10 of 16, mean reward 0." in printed
    assert [row[0] for row in rows(printed)] == list(compare.KINDS)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_did_not_come_out_is_said(example):
    compare = example("compare")
    rises, stays = [0.5] * 5 + [0.7] * 5, [0.5] * 10
    good = {name: [compare.Run(rises, None, 1.0)] for name in compare.KINDS}
    good[compare.CONTROL] = [compare.Run(stays, None, 1.0)]
    good[compare.PROCESS] = [compare.Run(rises, 0.5, 1.0)]
    assert compare.failures(good, 0.1) == []
    bad = {
        "grpo": [compare.Run(rises, None, 1.0), compare.Run(stays, None, 1.0)],
        compare.PROCESS: [compare.Run(rises, 0.2, 1.0), compare.Run(rises, None, 1.0)],
        compare.CONTROL: [compare.Run(rises, None, 1.0)],
    }
    assert compare.failures(bad, 0.1) == [
        "grpo, seed 1: a gain of 0.000, less than 0.1",
        f"{compare.PROCESS}, seed 0: explained variance 0.2, not above 0.3",
        f"{compare.PROCESS}, seed 1: explained variance None, not above 0.3",
        f"{compare.CONTROL}, seed 0: a gain of 0.200, though its rewards are random",
    ]


def test_the_readmes_script_trains(example, made, tmp_path):
    """With the tiny model and its data in place of those from the Hub."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "rl_estimators.trl" in b]
    changes = {
        "from trl.rewards import accuracy_reward": "from digit_sort.reward import digits_in_place as accuracy_reward",
        "Qwen/Qwen3-0.6B": str(made / "model"),
        "trl-lib/DeepMath-103K": str(made / "data"),
        'output_dir="out"': f"output_dir={str(tmp_path)!r}, max_steps=1, per_device_train_batch_size=8, "
        "max_completion_length=6, logging_steps=1, report_to='none', use_cpu=True, bf16=False, disable_tqdm=True",
    }
    for text, other in changes.items():
        assert text in block
        block = block.replace(text, other)
    scope = {}
    exec(block, scope)
    assert "critic/explained_variance" in scope["trainer"].state.log_history[0]


def rows(text):
    """The cells of a Markdown table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_in_the_readme_is_the_comparisons(example):
    compare = example("compare")
    text = (EXAMPLES / "trl" / "README.md").read_text().partition("| estimator | seed 0")
    table = rows("".join(text[1:]).partition("\n\n")[0])
    assert [row[0] for row in table] == list(compare.KINDS)
    for name, *cells in table:
        gains = [
            float(b) - float(a) for a, b in (re.match(r"(\S+) to (\S+)$", c).groups() for c in cells[:3])
        ]
        assert min(gains) == pytest.approx(float(cells[3]), abs=0.0015)
        assert (min(gains) >= 0.1) != (name == compare.CONTROL)
    explained = [float(number) for number in table[list(compare.KINDS).index(compare.PROCESS)][5].split(", ")]
    assert min(explained) > 0.3
    assert (EXAMPLES / "trl" / "compare.png").stat().st_size < 100_000
