"""Every hook, on a copy of verl's own module in which its target has drifted, when that copy is imported."""

import dataclasses
import functools
import importlib
import importlib.util
import logging
import sys
import warnings
from pathlib import Path

import pytest
from doctored import ADDED, doctored

from rl_estimators import imports, patching
from rl_estimators.errors import PatchError
from rl_estimators.patching import State

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("verl")

PATCHES = {patch.name: patch for patch in importlib.import_module("rl_estimators.patches").VERL}
RELY = [name for name, patch in PATCHES.items() if patch.body_matters]


@pytest.fixture(params=PATCHES)
def patch(request):
    """The hook, for a module of another name."""
    whole = PATCHES[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(whole.module)  # what it imports in turn is there and need not be a copy
    return dataclasses.replace(whole, module="rle_drift.here", needed=lambda: True)


@pytest.fixture
def imported(patch, tmp_path, monkeypatch):
    """Imports the copy, drifted in one way, with the hook armed; returns the module and the hook's status."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.delenv(patching.STRICT, raising=False)
    monkeypatch.delenv(patching.DISABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    target = PATCHES[patch.name].module
    source = Path(importlib.util.find_spec(target).origin).read_text()
    source = source.replace("from .", f"from {target.rpartition('.')[0]}.")
    (tmp_path / "rle_drift").mkdir()
    (tmp_path / "rle_drift" / "__init__.py").touch()
    (tmp_path / "rle_drift" / "elsewhere.py").write_text(source)

    def build(kind):
        text = doctored(source, patch.attribute, kind, "rle_drift.elsewhere")
        (tmp_path / "rle_drift" / "here.py").write_text(text)
        patching.install(patch)
        module = importlib.import_module("rle_drift.here")
        return module, patching.report()[0]

    yield build
    for name in [name for name in sys.modules if name.partition(".")[0] == "rle_drift"]:
        del sys.modules[name]


def is_hooked(module, patch):
    function = functools.reduce(getattr, patch.attribute.split("."), module)
    return getattr(function, "__rl_estimators_patch__", None) == patch.name


def test_unchanged(imported, patch):
    module, status = imported("unchanged")
    assert (status.state, status.detail, patching.changed_body(status)) == (State.APPLIED, "", "")
    assert is_hooked(module, patch)


def test_another_signature(imported, patch, caplog):
    with caplog.at_level(logging.WARNING):
        module, status = imported("signature")
    assert status.state is State.DRIFTED
    assert status.detail.startswith(f"expected {patch.signature}, found (")
    assert f"{ADDED}=None" in status.detail
    assert not is_hooked(module, patch)
    assert caplog.messages == [f"rl_estimators: {status}"]
    refused(patch, r"drifted: upstream does not look as reviewed \(expected \(")


def test_another_body(imported, patch, caplog):
    """Stops the hooks that rely on it; the others are applied, and the doctor is told."""
    with caplog.at_level(logging.WARNING):
        module, status = imported("body")
    told = f"its body has changed: reviewed {next(iter(patch.reviewed.values()))} in 0.9.0"
    if patch.name in RELY:
        assert status.state is State.DRIFTED
        assert status.detail.startswith(told)
        assert caplog.messages == [f"rl_estimators: {status}"]
        refused(patch, r"drifted: upstream does not look as reviewed \(its body has changed: ")
    else:
        assert (status.state, status.detail, caplog.messages) == (State.APPLIED, "", [])
        assert patching.changed_body(status).startswith(told)
    assert is_hooked(module, patch) == (patch.name not in RELY)


def test_gone(imported, patch):
    _, status = imported("gone")
    assert (status.state, status.detail) == (
        State.DRIFTED,
        f"gone: rle_drift.here defines no {patch.attribute}",
    )
    refused(patch, r"gone: rle_drift\.here defines no ")


def test_moved(imported, patch):
    """It can be had where it was, but whoever takes it from its new home would not get ours."""
    module, status = imported("moved")
    assert (status.state, status.detail) == (
        State.DRIFTED,
        "moved: rle_drift.here has it from rle_drift.elsewhere",
    )
    assert not is_hooked(module, patch)
    refused(patch, r"moved: rle_drift\.here has it from rle_drift\.elsewhere")


def refused(patch, message):
    """What a user sees who asked for what needs the hook."""
    text = rf"^algorithm\.adv_estimator=x needs a hook that is not in force\. {patch.name}: .*{message}"
    with pytest.raises(PatchError, match=text):
        patching.require(patch.name, purpose="algorithm.adv_estimator=x")


@pytest.mark.parametrize("module", ["rle_drift.nowhere", "rle_no_package.nowhere", "rle_drift.here"])
def test_the_module_is_gone(module, tmp_path, monkeypatch):
    """A hook that waits for it would wait for ever: who needs it is told so, and nobody else."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rle_drift").mkdir()
    (tmp_path / "rle_drift" / "here.py").touch()
    patching.install(dataclasses.replace(PATCHES["verl_inputs"], module=module))
    (status,) = patching.report()
    assert status.state is State.PENDING
    if module == "rle_drift.here":
        patching.require("verl_inputs", purpose="x")
        return
    with pytest.raises(
        PatchError, match=rf"x needs a hook that is not in force.*gone: there is no module {module}"
    ):
        patching.require("verl_inputs", purpose="x")
