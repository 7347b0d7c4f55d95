"""The life of a patch, on an upstream package written for the purpose."""

import importlib
import logging
import pickle
import sys

import pytest

from rl_estimators import imports, patching
from rl_estimators.errors import PatchError
from rl_estimators.patching import Patch, State


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """A distribution ``rle-upstream`` 1.5 with a module of one function and a class."""
    (tmp_path / "rle_upstream.py").write_text(
        "def double(x, times=2):\n    return x * times\n\nclass Thing:\n    def grow(self, by):\n        return by + 1\n"
    )
    info = tmp_path / "rle_upstream-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rle-upstream\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    yield tmp_path
    for name in ("rle_upstream", "rle_upstream_user"):
        sys.modules.pop(name, None)


def plus_one(original):
    def double(*args, **kwargs):
        return original(*args, **kwargs) + 1

    return double


def patch(**change):
    data = {
        "name": "plus-one",
        "distribution": "rle-upstream",
        "releases": ">=1.0,<2",
        "module": "rle_upstream",
        "attribute": "double",
        "signature": "(x, times=2)",
        "upstream": "https://example.org",
        "remove_when": "never",
        "wrap": plus_one,
    }
    return Patch(**{**data, **change})


def install(**change):
    patching.install(patch(**change))
    module = importlib.import_module("rle_upstream")
    (status,) = patching.report()
    return module, status


def test_applied_when_imported(upstream):
    patching.install(patch())
    assert patching.report()[0].state is State.PENDING
    assert "rle_upstream" not in sys.modules
    module = importlib.import_module("rle_upstream")
    assert module.double(2) == 5
    assert patching.report()[0].state is State.APPLIED
    patching.require("plus-one", purpose="the test")


def test_a_method(upstream):
    module, status = install(attribute="Thing.grow", signature="(self, by)")
    assert status.state is State.APPLIED
    assert module.Thing().grow(1) == 3


def test_applied_once_and_again_after_reload(upstream):
    module, _ = install()
    patching.install(patch())
    assert module.double(2) == 5
    assert importlib.reload(module).double(2) == 5


def test_pickled_by_reference(upstream):
    module, _ = install()
    assert pickle.loads(pickle.dumps(module.double)) is module.double


def test_uninstall_puts_the_original_back(upstream):
    module, _ = install()
    patching.uninstall("plus-one")
    assert module.double(2) == 4
    assert patching.report()[0].state is State.UNINSTALLED
    assert importlib.reload(module).double(2) == 4


def test_installed_again(upstream):
    module, _ = install()
    patching.uninstall("plus-one")
    patching.install(patch())
    assert patching.report()[0].state is State.APPLIED
    assert module.double(2) == 5
    assert importlib.reload(module).double(2) == 5  # once, not twice


def test_installed_again_before_the_import(upstream):
    patching.install(patch())
    patching.uninstall("plus-one")
    assert not patching.in_force("plus-one")
    patching.install(patch())
    assert patching.in_force("plus-one")
    assert importlib.import_module("rle_upstream").double(2) == 5


def test_uninstalled_before_the_import(upstream):
    patching.install(patch())
    patching.uninstall("plus-one")
    assert importlib.import_module("rle_upstream").double(2) == 4


def test_installed_again_and_switched_off_since(upstream, monkeypatch):
    module, _ = install()
    patching.uninstall("plus-one")
    monkeypatch.setenv(patching.DISABLE, "plus-one")
    patching.install(patch())
    assert patching.report()[0].state is State.DISABLED
    assert module.double(2) == 4


def test_uninstall_names_those_who_keep_the_replacement(upstream):
    install()
    (upstream / "rle_upstream_user.py").write_text("from rle_upstream import double as twice\n")
    user = importlib.import_module("rle_upstream_user")
    patching.uninstall("plus-one")
    assert user.twice(2) == 5
    (status,) = patching.report()
    assert status.late == ("rle_upstream_user.twice",)
    assert str(status).startswith("plus-one: uninstalled (too late for rle_upstream_user.twice) [")


def test_uninstall_refuses_when_somebody_else_came_after(upstream):
    module, _ = install()
    module.double = print
    with pytest.raises(PatchError, match="cannot undo 'plus-one': double has since become <built-in"):
        patching.uninstall("plus-one")


def test_uninstall_of_what_is_not_there(upstream):
    with pytest.raises(PatchError, match="no patch is named 'plus-two'; installed: none"):
        patching.uninstall("plus-two")


@pytest.mark.parametrize("value", ["all", "other,plus-one", " plus-one "])
def test_disabled(upstream, monkeypatch, value):
    monkeypatch.setenv(patching.DISABLE, value)
    module, status = install()
    assert module.double(2) == 4
    assert (status.state, status.healthy) == (State.DISABLED, True)


@pytest.mark.parametrize(
    ("change", "state", "detail"),
    [
        ({"needed": lambda: False}, State.UNNEEDED, ""),
        ({"releases": ">=2"}, State.UNSUPPORTED, "rle-upstream 1.5, reviewed for >=2"),
        ({"signature": "(x)"}, State.DRIFTED, "expected (x), found (x, times=2)"),
        (
            {"reviewed": {"1.4": "0" * 12}, "body_matters": True},
            State.DRIFTED,
            "its body has changed: reviewed 000000000000 in 1.4, found ",
        ),
        ({"attribute": "gone"}, State.DRIFTED, "gone: rle_upstream defines no gone"),
        ({"attribute": "Gone.grow"}, State.DRIFTED, "gone: rle_upstream defines no Gone.grow"),
        ({"wrap": lambda original: 1 / 0}, State.FAILED, "ZeroDivisionError"),
    ],
)
def test_left_alone(upstream, change, state, detail, caplog):
    with caplog.at_level(logging.WARNING):
        module, status = install(**change)
    assert module.double(2) == 4
    assert status.state is state
    assert status.detail.startswith(detail)
    assert (state is State.UNNEEDED) == (not caplog.records)
    with pytest.raises(PatchError, match=r"the test needs a hook that is not in force. plus-one: .*doctor"):
        patching.require("plus-one", purpose="the test")


@pytest.mark.parametrize("body_matters", [False, True])
def test_a_body_that_was_read(upstream, body_matters):
    source = patching.digest(importlib.import_module("rle_upstream").double)
    module, status = install(reviewed={"1.4": "0" * 12, "1.5": source}, body_matters=body_matters)
    assert status.state is State.APPLIED
    assert module.double(2) == 5
    assert patching.changed_body(status) == ""


def test_another_body_is_applied_and_told(upstream):
    source = patching.digest(importlib.import_module("rle_upstream").double)
    module, status = install(reviewed={"1.4": "0" * 12})
    assert (status.state, status.healthy) == (State.APPLIED, True)
    assert module.double(2) == 5
    assert (
        patching.changed_body(status) == f"its body has changed: reviewed 000000000000 in 1.4, found {source}"
    )


def test_a_body_that_nobody_read(upstream):
    _, status = install()
    assert patching.changed_body(status) == ""


def test_the_digest_is_that_of_the_source(upstream):
    """The first 12 digits of `printf 'def double(x, times=2):\\n    return x * times\\n' | sha256sum`."""
    assert patching.digest(importlib.import_module("rle_upstream").double) == "1dd78a86b230"


def test_strict_raises_at_import(upstream, monkeypatch):
    monkeypatch.setenv(patching.STRICT, "1")
    with pytest.raises(PatchError, match=r"plus-one: drifted.*expected \(x\), found \(x, times=2\)"):
        install(signature="(x)")


def test_those_who_imported_by_name_before_are_named(upstream, caplog):
    (upstream / "rle_upstream_user.py").write_text("from rle_upstream import double as twice\n")
    importlib.import_module("rle_upstream_user")
    with caplog.at_level(logging.WARNING):
        _, status = install()
    assert (status.state, status.late) == (State.APPLIED, ("rle_upstream_user.twice",))
    assert not status.healthy
    assert "too late for rle_upstream_user.twice" in caplog.text


def test_two_patches_of_one_name(upstream):
    patching.install(patch())
    with pytest.raises(PatchError, match="two different patches are named 'plus-one'; rename one"):
        patching.install(patch(attribute="Thing.grow"))


def test_require_of_what_is_not_installed(upstream):
    with pytest.raises(
        PatchError, match=r"remax needs a hook that is not in force. greedy: not installed. See"
    ):
        patching.require("greedy", purpose="remax")
