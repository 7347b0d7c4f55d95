"""Rollouts and their files may hold what a terminal obeys: none of it reaches the terminal, in tables and in errors."""

import json
import unicodedata

import pytest
import torch

from rl_estimators import cli
from rl_estimators.compare import save

# Sets the window's title, wipes the screen, moves up and overwrites; a C1 control; reversed text; a hidden tag.
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[1A\x9b31m\r\x08\u202e\u2066\U000e0041\x00"
NAMES = EVIL.replace("\x00", "")  # a file's name holds no NUL


def tame(text):
    """No sign in it that does anything but stand there."""
    odd = {sign for sign in text if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    return odd <= {"\n"}


def row(number, **more):
    return {
        "prompt": f"{EVIL}{number // 2}",
        "response": f"{EVIL} {number} {EVIL}",
        "reward": float(number % 2),
        EVIL: EVIL,
        **more,
    }


@pytest.fixture
def rows(tmp_path):
    """Writes rows of JSON to a file with an evil name."""

    def write(found, name=f"{NAMES}.jsonl"):
        path = tmp_path / name
        path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in found))
        return path

    return write


def shown(capsys, *words):
    code = cli.main(["compare", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_in_the_tables(rows, capsys):
    path = rows([row(number) for number in range(6)])
    code, text = shown(capsys, path, "--each", "--estimators", "grpo,reinforce_pp")
    assert code == 0
    assert "\\x1b]0;owned\\x07" in text
    assert tame(text)


def test_a_name_of_a_million_signs_is_cut(rows, capsys):
    """Of a key that is not read, of a reward, of what a line has instead of a number, and in an error."""
    name = "k" * 1_000_000
    for lines in (
        [row(0, **{name: 1}), row(1)],
        [row(n, reward_components={name: n}) for n in range(4)],
        [row(0, values=[1], **{name: 1}), row(1, reward=name)],
        [{name: 1}],
    ):
        _, text = shown(capsys, rows(lines, "a.jsonl"), "--each")
        assert len(text) < 50_000


def test_of_several_rewards(rows, capsys):
    both = [{**row(n), "reward_components": {EVIL: n % 2, f"b{EVIL}": 1}} for n in range(6)]
    code, text = shown(capsys, rows(both), "--each")
    assert code == 0
    assert tame(text)


@pytest.mark.parametrize(
    "lines",
    [
        ["{" + EVIL.replace("\r", "") + "\n"],
        [json.dumps([EVIL]) + "\n"],
        [row(0, values=EVIL), row(1)],
        [row(0, reward=EVIL), row(1)],
        [row(0, step=EVIL), row(1)],
        [row(0, response=[EVIL], values=[1, 2])],
        [row(0, response={EVIL: EVIL})],
        [row(0, prompt=[{"role": EVIL, EVIL: EVIL}])],
    ],
)
@pytest.mark.parametrize("strict", [[], ["--strict"]], ids=["", "strict"])
def test_in_what_is_said_of_lines(rows, capsys, lines, strict):
    _, text = shown(capsys, rows(lines), *strict)
    assert tame(text)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_in_names_of_tensors(tmp_path, capsys, suffix):
    path = tmp_path / f"{NAMES}.{suffix}"
    tensors = {
        "token_level_rewards": torch.ones(2, 2),
        "response_mask": torch.ones(2, 2),
        EVIL: torch.ones(2),
    }
    if suffix == "pt":
        torch.save({**tensors, "prompts": [EVIL, EVIL]}, path)
    else:
        from safetensors.torch import save_file

        save_file(
            tensors, path, metadata={"rl_estimators": json.dumps({"prompts": [EVIL, EVIL], EVIL: EVIL})}
        )
    code, text = shown(capsys, path)
    assert code == 0
    assert tame(text)


@pytest.mark.parametrize("value", [EVIL, {EVIL: torch.ones(2)}, [EVIL]])
def test_in_errors_of_tensors(tmp_path, capsys, value):
    path = tmp_path / f"{NAMES}.pt"
    torch.save({EVIL: value, "token_level_rewards": torch.ones(2, 2)}, path)
    code, text = shown(capsys, path)
    assert code == 2
    assert tame(text)


def test_in_errors_of_columns(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / f"{NAMES}.parquet"
    for columns in ({EVIL: ["a"]}, {"prompt": ["p"], "completion": ["c"], EVIL: ["x"]}):
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        code, text = shown(capsys, path)
        assert code == 2
        assert tame(text)


def test_in_an_error_about_a_path(tmp_path, capsys):
    code, text = shown(capsys, tmp_path / NAMES)
    assert code == 2
    assert "no such file or folder" in text
    assert tame(text)


def test_in_what_is_written(rows, capsys, tmp_path):
    """The page and the JSON file are for other readers; what is said of them is for the terminal."""
    path = rows([row(number) for number in range(4)])
    code, text = shown(
        capsys, path, "--json", tmp_path / f"{NAMES}.json", "--html", tmp_path / f"{NAMES}.html"
    )
    assert code == 0
    assert tame(text)
    assert json.loads((tmp_path / f"{NAMES}.json").read_text())


def test_what_was_saved_with_care(tmp_path, capsys):
    ones = torch.ones(2, 2)
    save(
        tmp_path / "a.pt",
        prompts=[EVIL] * 2,
        pieces=[[EVIL] * 2] * 2,
        token_level_rewards=ones,
        response_mask=ones,
    )
    code, text = shown(capsys, tmp_path / "a.pt", "--each")
    assert code == 0
    assert tame(text)
