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
