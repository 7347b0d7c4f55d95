"""The report on how hooks fit a release, on source trees written for the purpose."""

import importlib.util
from pathlib import Path

import pytest

from rl_estimators import patching
from rl_estimators.patching import Patch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def upstream():
    spec = importlib.util.spec_from_file_location("upstream", ROOT / ".ci/upstream.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = """
def wraps(f): return f

@wraps
def target(a, /, b, c=None, *args, d="x", e=-1.5, **kwargs):
    return a

class Thing:
    async def grow(self, by=(1, 2)): ...
"""


def patch(**change):
    data = dict.fromkeys(("name", "distribution", "upstream", "remove_when"), "x")
    data |= {"releases": ">=0.9", "module": "verl.here", "attribute": "target", "wrap": None}
    data |= {"signature": "(a, /, b, c=None, *args, d='x', e=-1.5, **kwargs)"}
    return Patch(**{**data, **change})


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "verl/version").mkdir(parents=True)
    (tmp_path / "verl/version/version").write_text("0.9.5\n")
    (tmp_path / "verl/here.py").write_text(SOURCE)
    return tmp_path


def test_fits(upstream, tree):
    assert upstream.examine(patch(), tree) == "fits"
    assert upstream.examine(patch(attribute="Thing.grow", signature="(self, by=(1, 2))"), tree) == "fits"


def test_the_source_reads_as_the_imported_function_does(upstream, tree):
    """Signature and digest agree with those that the running patch engine takes."""
    spec = importlib.util.spec_from_file_location("here", tree / "verl/here.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole = patch(
        signature=patching.signature(module.target), reviewed={"0.9.5": patching.digest(module.target)}
    )
    assert upstream.examine(whole, tree) == "fits"


def test_changed(upstream, tree):
    assert upstream.examine(patch(signature="(a)"), tree).startswith(
        "changed: expected (a), found (a, /, b, c=None"
    )
    assert upstream.examine(patch(reviewed={"0.9.1": "0"}), tree).startswith(
        "changed body: reviewed 0 in 0.9.1, found "
    )


def test_moved_and_gone(upstream, tree):
    assert upstream.examine(patch(module="verl.there"), tree) == "moved: to verl.here"
    assert upstream.examine(patch(attribute="nothing"), tree) == "gone"


def test_exit_code_counts_only_hooks_that_would_be_applied(upstream, tree, monkeypatch, capsys):
    patches = upstream.importlib.import_module("rl_estimators.patches")
    monkeypatch.setattr(patches, "VERL", (patch(), patch(signature="()", releases="<0.9")))
    assert upstream.main([str(tree)]) == 0
    assert "[not applied: <0.9]" in capsys.readouterr().out
    monkeypatch.setattr(patches, "VERL", (patch(signature="()"),))
    assert upstream.main([str(tree)]) == 1
    monkeypatch.setattr(patches, "VERL", (patch(reviewed={"0.9.1": "0"}),))
    assert upstream.main([str(tree)]) == 0
    monkeypatch.setattr(patches, "VERL", (patch(reviewed={"0.9.1": "0"}, body_matters=True),))
    assert upstream.main([str(tree)]) == 1


@pytest.mark.verl
def test_every_hook_fits_the_installed_verl(upstream):
    spec = importlib.util.find_spec("verl")
    assert upstream.main([str(Path(spec.origin).parents[1])]) == 0


@pytest.mark.verl
def test_every_hook_says_why_it_is_there():
    import rl_estimators.patches

    for hook in rl_estimators.patches.VERL:
        assert isinstance(hook, patching.Patch)
        assert hook.upstream.startswith("https://github.com/verl-project/verl/")
        assert hook.remove_when
        assert (ROOT / "patches" / f"{hook.name}.py").is_file()


def test_what_to_do_is_said_for_each_verdict_that_came_up(upstream, tree, monkeypatch, capsys):
    patches = upstream.importlib.import_module("rl_estimators.patches")
    hooks = {
        "fits": patch(),
        "not applied": patch(releases="<0.9", signature="()"),
        "changed": patch(signature="()"),
        "changed body": patch(reviewed={"0.9.1": "0"}),
        "moved": patch(module="verl.there"),
        "gone": patch(attribute="nothing"),
    }
    for verdict, hook in hooks.items():
        monkeypatch.setattr(patches, "VERL", (hook,))
        upstream.main([str(tree)])
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("What to do about")]
        if verdict == "fits":
            assert said == []
        else:
            assert len(said) == 1
            assert said[0].startswith(f"What to do about {verdict!r}: ")


def test_nothing_to_look_at(upstream, capsys):
    with pytest.raises(SystemExit):
        upstream.main([])
    assert "name a release of verl, or of TRL with --trl" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- upstream_tests.py


@pytest.fixture(scope="module")
def tests():
    spec = importlib.util.spec_from_file_location("upstream_tests", ROOT / ".ci/upstream_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADED = {"loaded": True, "failures": [], "applied": ["verl_inputs"], "unhealthy": []}


def test_outcomes_that_differ_are_an_error(tests, capsys):
    before = {"a": ("passed", ""), "b": ("failure", "KeyError: 1"), "c": ("skipped", "no GPU")}
    assert tests.compare(before, before) == 0
    printed = capsys.readouterr().out
    assert "without  1 failure, 1 passed, 1 skipped" in printed
    assert "fails without our package, 1 x KeyError: 1" in printed
    for change in ({"a": ("failure", "AssertionError: 2")}, {"b": ("passed", "")}, {"d": ("passed", "")}):
        assert tests.compare(before, {**before, **change}) == 1
    assert "  a: passed without our package, failure with it: AssertionError: 2" in capsys.readouterr().out
    assert tests.compare(before, {"a": before["a"]}) == 1
    assert "  c: skipped without our package, missing with it: " in capsys.readouterr().out
    assert tests.compare({}, {}) == 1
    assert "without  no tests" in capsys.readouterr().out


def test_a_comparison_of_nothing_is_an_error(tests, capsys):
    assert tests.judge(LOADED) == 0
    assert tests.judge({**LOADED, "loaded": False}) == 1
    assert "the plugin was not loaded in the second run" in capsys.readouterr().out
    assert tests.judge({**LOADED, "unhealthy": ["verl_log: drifted"]}) == 1
    assert "not as it should be: verl_log: drifted" in capsys.readouterr().out


def test_a_file_that_verl_does_not_ship_is_an_error(tests, tmp_path, capsys):
    assert tests.verls(("trainer/test_nothing.py",), folder=tmp_path) == 1
    assert "this verl does not ship trainer/test_nothing.py: mend FILES" in capsys.readouterr().out


def test_what_cannot_be_run_is_said_first(tests, capsys):
    for arguments, message in ((["vrel"], "there is no part vrel"), (["trl"], "trl needs --trl-tests")):
        with pytest.raises(SystemExit):
            tests.main(arguments)
        assert message in capsys.readouterr().err


def test_both_runs_are_made_and_compared(tests, tmp_path, capsys):
    """One test that passes both times, and one that sees which of the two it is in."""
    (tmp_path / "test_two.py").write_text(
        "import os\n"
        "def test_same(): pass\n"
        "def test_none_but_verls(): assert os.environ['VERL_USE_EXTERNAL_PLUGINS'] == 'none'\n"
    )
    assert tests.verls(("test_two.py",), folder=tmp_path) == 1
    printed = capsys.readouterr().out
    assert "test_two::test_none_but_verls: passed without our package, failure with it: " in printed
    assert "test_same" not in printed
    assert "without  2 passed" in printed
    assert "with     1 failure, 1 passed" in printed
    assert "the plugin was not loaded" in printed  # nobody has imported verl


@pytest.mark.verl
def test_every_file_listed_is_in_verls_wheel(tests):
    folder = Path(importlib.util.find_spec("verl").origin).parents[1] / "tests"
    assert [name for names in tests.FILES.values() for name in names if not (folder / name).exists()] == []
