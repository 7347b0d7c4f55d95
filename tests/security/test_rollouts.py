"""Rollouts made to exhaust or to mislead: a small file takes little memory, and no file leads to another."""

import json
import time

import pytest
import torch

from rl_estimators import cli
from rl_estimators.compare import trl_completions
from rl_estimators.compare.weights import Weights

ROW = {"prompt": "p", "response": "a b", "reward": 1}


def run(capsys, *words):
    """Exit code, and all that was printed; no more than half a minute of work."""
    start = time.process_time()
    code = cli.main(["compare", *map(str, words)])
    assert time.process_time() - start < 30
    out = capsys.readouterr()
    return code, out.out + out.err


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_repeated_in_a_table_is_unpacked_in_parts(tmp_path, monkeypatch):
    """1 KB of Parquet stands for 64 MiB of text: of a text in a dictionary, each row costs next to nothing."""
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows, length = 64, 2**20
    once = pyarrow.array(["a" * length])
    prompts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), once)
    columns = {"prompt": prompts, "completion": ["c"] * rows, "reward": [0.0] * rows}
    path = tmp_path / "completions.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 5_000
    del prompts, columns, once
    monkeypatch.setattr(trl_completions, "_ROOM", 4 * length)
    before = pyarrow.total_allocated_bytes()
    found = trl_completions.rows(path, "source", Weights(None))
    _, first = next(found)
    taken = pyarrow.total_allocated_bytes() - before
    assert taken < 16 * length  # all at once it is 64
    assert len(first().prompt) == length
    others = [read() for _, read in found]
    assert len(others) == rows - 1
    assert len({id(record.prompt) for record in others}) == 1
    assert len({id(record.response[0][0]) for record in others}) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": ' + "[" * 200_000 + "\n",
        '{"prompt": ' + '{"a":' * 200_000 + "1" + "}" * 200_001 + "\n",
        '{"prompt": "p", "response": "r", "reward": ' + "9" * 100_000 + "}\n",
        '{"prompt": "p", "response": "r", "reward": 1e999999999}\n',
        '{"prompt": "p", "response": "r", "reward": 1, "step": 1e308}\n',
        '{"prompt": "p", "response": "r", "reward": 1, "step": ' + "9" * 4000 + "}\n",
        '{"prompt": "p", "response": "r", "reward": true}\n',
        '{"prompt": "p", "response": ["a"], "token_level_rewards": [NaN]}\n',
        "\x00" * 1000 + "\n",
        '{"prompt": "p", "response": "r", "reward": 1, "x": [' + "{}," * 2**20 + "1]}\n",
        '{"prompt": "p", "response": "r", ' + ",".join(f'"rewar{n}": 1' for n in range(200_000)) + "}\n",
        '{"prompt": "p", "response": "r", "rewar' + "d" * 5_000_000 + '": 1}\n',
        '{"prompt": "p", "response": "\\ud800", "reward": 1}\n',
    ],
    ids=[
        "lists",
        "objects",
        "digits",
        "exponent",
        "step",
        "long_step",
        "boolean",
        "nan",
        "nul",
        "brackets",
        "keys",
        "long_key",
        "surrogate",
    ],
)
def test_odd_lines_are_skipped_or_read_and_the_rest_with_them(tmp_path, capsys, line):
    path = write(tmp_path / "a.jsonl", ROW, line, {**ROW, "reward": 0})
    page = tmp_path / "page.html"
    code, text = run(capsys, path, "--html", page, "--json", tmp_path / "a.json", "--estimators", "grpo")
    assert code == 0, text
    page.read_text(encoding="utf-8")
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN


def test_a_tensor_that_claims_more_than_it_holds(tmp_path, capsys):
    huge = torch.ones(1).expand(2**16, 2**16)
    torch.save({"token_level_rewards": huge, "response_mask": huge}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 5_000
    code, text = run(capsys, tmp_path / "a.pt")
    assert code == 2
    assert "more than" in text


def test_texts_that_name_files_open_none(tmp_path, capsys, monkeypatch):
    """A prompt, uid or reward's name is never a path, whatever it looks like."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("opensesame")
    path = "../../" * 9 + str(tmp_path / "secret.txt")
    rows = [
        {"prompt": path, "uid": path, "response": f"file://{path}", "reward_components": {path: n}}
        for n in (0, 1)
    ]
    code, text = run(capsys, write(tmp_path / "a.jsonl", *rows), "--html", "page.html", "--json", "out.json")
    assert code == 0
    assert (
        "opensesame" not in text + (tmp_path / "page.html").read_text() + (tmp_path / "out.json").read_text()
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "a.jsonl",
        "out.json",
        "page.html",
        "secret.txt",
    ]


def test_what_is_read_is_never_overwritten(tmp_path, capsys):
    """Not even by way of a link."""
    path = write(tmp_path / "a.jsonl", ROW)
    before = path.read_bytes()
    (tmp_path / "link.html").symlink_to(path)
    code, text = run(capsys, path, "--html", tmp_path / "link.html")
    assert (code, path.read_bytes()) == (2, before)
    assert "it is one of the files to read" in text


def test_the_page_holds_no_markup_of_the_rollouts(tmp_path, capsys):
    """In a browser: tests/compare/test_page_hostile.py."""
    evil = "</script><script>fired()</script><img src=x onerror=fired()>"
    rows = [{"prompt": evil, "uid": evil, "response": evil, "reward_components": {evil: n}} for n in (0, 1)]
    page = tmp_path / "page.html"
    assert run(capsys, write(tmp_path / f"{evil.replace('/', '')}.jsonl", *rows), "--html", page)[0] == 0
    text = page.read_text()
    assert "<img" not in text
    assert "<script>fired" not in text
    assert "fired()" in text  # it is there, as text
    assert "default-src 'none'" in text
