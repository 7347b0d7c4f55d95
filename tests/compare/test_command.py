"""``rl-estimators compare``: files in, a report out, and files written whole or not at all."""

import importlib
import io
import json
import os
import sys

import pytest
import torch
from compare.batches import INDEX, LENGTHS, SCORES

from rl_estimators import cli
from rl_estimators.commands import compare as command
from rl_estimators.compare import Reader, keeping, save
from rl_estimators.compare.tokens import Tokens
from rl_estimators.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two steps as verl dumps them."""
    dump = tmp_path / "dump"
    dump.mkdir()
    for step in (1, 2):
        lines = [
            {"input": name, "output": " word" * length, "gts": "", "score": score, "step": step}
            for name, score, length in zip(INDEX, SCORES, LENGTHS, strict=True)
        ]
        (dump / f"{step}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    monkeypatch.setenv("COLUMNS", "100")
    return dump


def run(*words):
    return cli.main(["compare", *map(str, words)])


def test_the_report(folder, capsys):
    assert run(folder, "--estimators", "grpo,rloo,gae") == 0
    out, err = capsys.readouterr()
    assert "24 responses to 10 prompts" in out
    assert (
        "Nothing is learnt from any of them, for all their advantages are 0, under grpo, rloo."
        in " ".join(out.split())
    )
    assert "not run: gae: the rollouts lack values" in out
    assert err == ""


def test_by_default_all_that_can_run(folder, capsys):
    assert run(folder / "1.jsonl", "--each", "--top", 1) == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in ("grpo", "rloo", "reinforce_pp", "opo", "maxrl"))


def test_everything_it_writes(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    paths = [tmp_path / name for name in ("a.html", "a.png", "a.json")]
    assert (
        run(folder, "--estimators", "grpo,rloo", "--html", paths[0], "--png", paths[1], "--json", paths[2])
        == 0
    )
    html, png, numbers = (path.read_bytes() for path in paths)
    assert html.startswith(b"<!doctype html>") or html.startswith(b"<!DOCTYPE html>")
    assert b"grpo" in html
    assert png.startswith(b"\x89PNG")
    assert capsys.readouterr().err.count("wrote ") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "a.png", "dump"]
    _check_numbers(json.loads(numbers, parse_constant=pytest.fail))


def _check_numbers(found):
    """A machine finds what the table shows, and each response's advantage: RLOO's of one right in four is 1."""
    assert [batch["step"] for batch in found["batches"]] == [1, 2]
    assert found["estimators"]["grpo"]["zero_responses"] == 0.5
    assert found["estimators"]["grpo"]["quiet"] == 4
    assert found["prompt_kinds"] == {"mixed": 4, "right": 2, "wrong": 2, "same": 0, "single": 2}
    first = found["batches"][0]["responses"][0]
    assert (first["prompt"], first["reward"], first["tokens"]) == (0, 1, LENGTHS[0])
    assert first["advantages"]["rloo"] == 1
    assert found["batches"][0]["prompts"][0]["text"] == "mixed"
    assert 0.9 < found["rank_agreement"]["grpo"]["rloo"] <= 1
    assert found["skipped"]["count"] == 0


def test_a_nan_is_null_in_json(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "response": "a", "reward": NaN}\n' * 2)
    assert run(tmp_path / "a.jsonl", "--json", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert found["batches"][0]["responses"][0]["reward"] is None
    assert "no reward is a number" in capsys.readouterr().out


class TestProblems:
    @pytest.fixture
    def broken(self, folder):
        path = folder / "1.jsonl"
        path.write_text(path.read_text() + '{"input": "\x1b[2J\n')
        return path

    def test_skipped_and_counted(self, broken, capsys):
        assert run(broken, "--estimators", "grpo") == 0
        out, err = capsys.readouterr()
        assert "12 responses" in out
        assert "1.jsonl:13: it is not JSON" in err
        assert "1 skipped in all; --strict refuses them" in err
        assert "\x1b" not in err

    def test_strict_refuses_and_writes_nothing(self, broken, tmp_path, capsys):
        assert run(broken, "--strict", "--json", tmp_path / "a.json") == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "rl-estimators compare: " in err
        assert "1.jsonl:13: it is not JSON" in err
        assert not (tmp_path / "a.json").exists()

    def test_a_bad_file_in_a_folder_is_skipped(self, folder, capsys):
        (folder / "3.jsonl").write_bytes(b"\x00\x01junk\n" * 3)
        (folder / "4.jsonl").write_bytes(b"")
        assert run(folder, "--estimators", "grpo") == 0
        err = capsys.readouterr().err
        assert "3.jsonl: no line can be read: line 1: it is not JSON" in err
        assert "4.jsonl: it is empty" in err
        assert run(folder, "--estimators", "grpo", "--strict") == 2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "it is empty"),
            (b"\x1f\x8b\x08abc", "it is compressed; unpack it with gunzip"),
            (b"PAR1junkPAR1", "no whole Parquet file"),
            (b"PK\x03\x04junk", "no whole file of torch.save"),
            (b"\x80\x04junk", "or a pickle, which is not read"),
            (b"\x08\x00\x00\x00\x00\x00\x00\x00{junk!!!", "no whole safetensors file"),
            (bytes(range(256)) * 50, "no line can be read: line 1: it is not JSON"),
            (b'[{"a": 1}]', "it is a JSON list, expected an object"),
        ],
    )
    def test_files_of_other_kinds(self, tmp_path, capsys, content, message):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert run(path) == 2
        assert message in capsys.readouterr().err


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere"], "nowhere: no such file or folder"),
            (
                ["{dump}", "--estimators", "gropo"],
                "no advantage estimator is named 'gropo'. Did you mean 'grpo'?",
            ),
            (
                ["{dump}", "--estimators", "grpo:epsilon=-1"],
                "--estimators grpo:epsilon=-1: grpo: epsilon is -1",
            ),
            (
                ["{dump}", "--estimators", "gae,td"],
                "no estimator can run on these rollouts\n  td: the rollouts lack values",
            ),
            (["{dump}", "--steps", "7"], "no step is in --steps 7; there are: 1, 2"),
            (["{dump}", "--steps", "x"], "--steps is 'x', expected steps like 1,5,10-20"),
            (["{dump}", "--top", "-1"], "--top is -1, expected a number of at least 0"),
            (
                ["{dump}", "--reward-weights", "1"],
                "--reward-weights is given, but there are no several rewards",
            ),
            (["{dump}", "--tokenizer", "{dump}"], "no tokenizer can be loaded from"),
            (["{dump}", "--json", "{dump}/no/a.json"], "the folder {dump}/no does not exist"),
            (["{dump}", "--json", "{dump}"], "it is a folder; name a file in it"),
            (["{dump}", "--json", "{dump}/1.jsonl"], "it is one of the files to read"),
            (
                ["{dump}", "--json", "{dump}/a", "--html", "{dump}/a"],
                "--html, --png and --json name one file",
            ),
            (
                ["{dump}", "--png", "{dump}/a.jpg"],
                "--png {dump}/a.jpg: the picture is a PNG; give it a name that ends in .png",
            ),
            (["{dump}", "--format", "trl"], "no whole Parquet file"),
        ],
    )
    def test_with_the_reason(self, folder, capsys, words, message):
        before = sorted(folder.iterdir())
        assert run(*(word.format(dump=folder) for word in words)) == 2
        out, err = capsys.readouterr()
        assert message.format(dump=folder) in err
        assert out == ""
        assert sorted(folder.iterdir()) == before

    def test_a_folder_without_rollouts(self, tmp_path, capsys):
        assert run(tmp_path) == 2
        assert "the folder holds no .jsonl, .parquet, .pt, .safetensors" in capsys.readouterr().err

    def test_without_matplotlib(self, folder, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(command, "find_spec", lambda name: None)
        assert run(folder, "--png", tmp_path / "a.png") == 2
        assert "--png needs matplotlib: pip install 'rl-estimators[see]'" in capsys.readouterr().err

    def test_a_disk_that_is_full(self, folder, tmp_path, capsys, monkeypatch):
        def replace(self, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pathlib.Path.replace", replace)
        assert run(folder, "--json", tmp_path / "a.json") == 2
        assert "a.json: it cannot be written: No space left on device" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["dump"]


def test_a_batch_of_ours(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # the folder's name is as long as it is
    save(tmp_path / "a.pt", token_level_rewards=torch.eye(3), response_mask=torch.ones(3, 3), index=["p"] * 3,
         values=torch.zeros(3, 3))  # fmt: skip
    assert run(tmp_path / "a.pt", "--estimators", "gae,rloo") == 0
    assert "a batch of tensors" in capsys.readouterr().out


def test_several_files(folder, capsys):
    assert run(folder / "1.jsonl", folder / "2.jsonl", "--estimators", "grpo") == 0
    assert "2 batches, 24 responses" in capsys.readouterr().out


def test_a_page_holds_what_there_is_memory_for(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keeping, "_MOST", 10)
    assert run(folder, "--html", tmp_path / "a.html", "--estimators", "grpo") == 0
    assert "1 batch did not find room in the page; choose fewer with --steps" in capsys.readouterr().err


def test_a_terminal_without_every_sign(tmp_path, monkeypatch):
    path, terminal = tmp_path / "a.jsonl", io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    path.write_text('{"prompt": "\u4e2d", "response": "a", "reward": 1}\n' * 2, encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(path, "--estimators", "grpo,reinforce") == 0
    assert rb"\u4e2d" in terminal.buffer.getvalue()


OWN = """
from rl_estimators import register_adv_est

@register_adv_est("half_of_it")
def half_of_it(token_level_rewards, response_mask):
    return token_level_rewards / 2, token_level_rewards
"""


@pytest.mark.parametrize("named", ["own_estimator_of_a_test", "own_estimator_of_a_test.py"])
def test_an_estimator_of_ones_own(named, folder, tmp_path, capsys, monkeypatch):
    from rl_estimators.registry import ADV_ESTIMATORS

    monkeypatch.setattr(ADV_ESTIMATORS, "_specs", {**ADV_ESTIMATORS._specs})
    (tmp_path / "own_estimator_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_estimator_of_a_test", raising=False)
    importlib.invalidate_caches()
    words = ["--external_modules", named, folder, "--estimators", "half_of_it", "--json", "a.json"]
    assert run(*words) == 0
    found = json.loads((tmp_path / "a.json").read_text())["batches"][0]["responses"][0]
    assert found["advantages"] == {"half_of_it": 0.5 / LENGTHS[0]}
    assert run(folder, "--external_modules", "no_such_module_anywhere") == 2
    assert "--external_modules: no module 'no_such_module_anywhere'" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert run(tmp_path / "pipe") == 2
    assert "it is no regular file; what comes through a pipe has to be saved first" in capsys.readouterr().err


class Terminal:
    def isatty(self):
        return True

    def write(self, text):
        self.written = getattr(self, "written", "") + text

    def flush(self):
        pass


def test_a_bar_on_long_inputs(monkeypatch):
    pytest.importorskip("tqdm")
    from rl_estimators.compare import progress

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with progress.progress(2 * progress._LONG) as advance:
        advance(progress._LONG)
        advance(progress._LONG)
    assert "reading" in terminal.written
    with progress.progress(10) as advance:
        advance(10)


class TestTokenizer:
    @pytest.fixture(scope="class")
    @classmethod
    def tokenizer(cls, tmp_path_factory):
        """A token for each byte."""
        pytest.importorskip("transformers")
        from pathlib import Path

        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
        from digit_sort.model import build_tokenizer

        path = tmp_path_factory.mktemp("tokenizer")
        build_tokenizer().save_pretrained(path)
        monkeypatch.undo()
        return path

    def test_exact_lengths(self, tokenizer, folder, capsys):
        assert run(folder / "1.jsonl", "--estimators", "grpo", "--tokenizer", tokenizer) == 0
        out = capsys.readouterr().out
        assert f" {sum(LENGTHS) * len(' word')} tokens" in out
        assert "approximate" not in out

    @pytest.mark.parametrize("text", ["a bc", "", "caf\u00e9 \u4e2d\U0001f600", "\ud800x", "\x00\n"])
    def test_joined_they_are_the_text(self, tokenizer, text):
        """A sign of several bytes is several tokens, the last of which shows it."""
        tokens = Tokens(str(tokenizer))
        pieces = tokens.split(text)
        assert "".join(pieces) == text
        number = len(text.replace("\ud800", "\ufffd").encode())
        assert len(pieces) == number
        assert tokens.counts([text] * 2000) == [number] * 2000

    def test_the_last_token_of_a_sign_shows_it(self, tokenizer):
        assert "|".join(Tokens(str(tokenizer)).split("a b\u00e9\u4e2d")) == "a| |b||\u00e9|||\u4e2d"

    def test_token_lists_fit_the_tokens(self, tokenizer, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"response": "abc", "token_level_rewards": [1, 2, 3]}')
        (found,) = Reader(splitter=Tokens(str(tokenizer))).read([path])
        assert found.inputs["token_level_rewards"].tolist() == [[1, 2, 3]]
        assert found.exact

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setattr("rl_estimators.compare.tokens.find_spec", lambda name: None)
        with pytest.raises(InputError, match="--tokenizer needs transformers: pip install transformers"):
            Tokens("x")

    def test_one_that_does_not_say_where_tokens_begin(self, monkeypatch):
        import transformers

        slow = type("Slow", (), {"is_fast": False})()
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: slow)
        with pytest.raises(InputError, match=r"the tokenizer 'x' \(Slow\) does not say where a token begins"):
            Tokens("x")
