"""The two commands about TRL's releases and TRL's own tests: what they make of what they find."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

CI = Path(__file__).parents[2] / ".ci"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_releases_in_a_table(capsys):
    releases = load("trl_releases")
    fine = dict.fromkeys(releases.CHECKS, "ok") | {"release": "1.16.0", "grpo": "= stock"}
    assert releases.report({"1.16.0": fine}) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["TRL", *releases.CHECKS]
    assert row.split() == ["1.16.0", "ok", "=", "stock", *["ok"] * (len(releases.CHECKS) - 2)]


def test_a_release_that_does_not_fit_is_an_error(capsys):
    releases = load("trl_releases")
    found = dict.fromkeys(releases.CHECKS, "ok") | {"gae": "PatchError: TRL is not as reviewed"}
    assert releases.report({"folder/1.17.0": found}) == 1
    printed = capsys.readouterr().out.splitlines()
    assert "PatchError" in printed[1]
    assert printed[2] == "folder/1.17.0 gae: PatchError: TRL is not as reviewed"


def test_the_default_releases_are_those_of_the_package():
    from packaging.specifiers import SpecifierSet

    from rl_estimators.trl import upstream

    assert all(release in SpecifierSet(upstream.RELEASES) for release in load("trl_releases").RELEASES)


def test_trls_tests_compared(capsys):
    """Passing with TRL's and not with ours is an error, unless ours says by name that it does not do that."""
    tests = load("trl_tests")
    stock = {"T::a": ("passed", ""), "T::b": ("failure", "KeyError: 1"), "T::c": ("passed", "")}
    refused = {**stock, "T::c": ("failure", "rl_estimators.errors.InputError: scale_rewards='batch'")}
    assert tests.report(stock, refused) == 0
    assert "T::c: passed with TRL's, refused with ours: rl_est" in capsys.readouterr().out
    assert tests.report(stock, {**stock, "T::c": ("failure", "AssertionError")}) == 1
    assert tests.report(stock, {name: stock[name] for name in ("T::a", "T::b")}) == 1
    assert "T::c: passed with TRL's, missing with ours" in capsys.readouterr().out


def test_stand_in_tokenizer_spells_as_the_tests_do():
    """A tool call in the numbers that TRL's test has for it."""
    import transformers

    tokenizer = load("trl_tests").make_tokenizer(transformers)
    ids = [151657, 198, 4913, 606, 788, 330, 64648, 22785, 497, 330, 16370, 788, 5212, 64, 788, 220, 18]
    assert tokenizer.decode(ids) == '<tool_call>\n{"name": "multiply_tool", "arguments": {"a": 3'
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (151643, 151645)
    assert tokenizer("a\n<tool_call>")["input_ids"] == [64, 198, 151657]
