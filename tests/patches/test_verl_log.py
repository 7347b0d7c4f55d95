"""The hook into verl's log: in force, and left alone where verl is not as reviewed."""

import dataclasses
import importlib
import importlib.machinery
import sys
import types

import pytest

from rl_estimators import imports, patching
from rl_estimators.patching import State


@pytest.fixture
def patch():
    return importlib.import_module("rl_estimators.patches.verl_log").PATCH


@pytest.fixture
def install(monkeypatch):
    """Installs the patch on a stand-in for verl's module, whose class keeps what it logs."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.delenv(patching.STRICT, raising=False)
    monkeypatch.delenv(patching.DISABLE, raising=False)
    monkeypatch.setattr(patching, "_release", {"verl": "0.9.1"}.__getitem__)

    def build(patch, parameters="(self, data, step, backend=None)"):
        namespace = {}
        exec(f"def log{parameters}:\n    return data, step, backend", namespace)
        module = types.ModuleType("rle_stand_in")
        module.__spec__ = importlib.machinery.ModuleSpec("rle_stand_in", None)
        module.Tracking = type("Tracking", (), {"log": namespace["log"]})
        monkeypatch.setitem(sys.modules, "rle_stand_in", module)
        patching.install(dataclasses.replace(patch, module="rle_stand_in"))
        (status,) = patching.report()
        return status, module.Tracking(), module.Tracking.log is namespace["log"]

    return build


def test_listed_and_named_as_its_file(patch):
    assert patch in importlib.import_module("rl_estimators.patches").VERL
    assert patch.name == "verl_log"
    assert patch.remove_when


def test_applied(patch, install):
    status, tracking, untouched = install(patch)
    assert (status.state, status.detail, untouched) == (State.APPLIED, "", False)
    metrics = {"actor/pg_loss": 1.0}
    assert tracking.log(metrics, 3) == (metrics, 3, None)
    assert tracking.log(data=metrics, step=3, backend=["file"]) == (metrics, 3, ["file"])


def test_a_changed_signature_is_left_alone(patch, install):
    status, _, untouched = install(patch, "(self, data, step)")
    assert (status.state, untouched) == (State.DRIFTED, True)
    assert "expected (self, data, step, backend=None), found (self, data, step)" in str(status)


def test_another_release_is_left_alone(patch, install, monkeypatch):
    monkeypatch.setattr(patching, "_release", {"verl": "0.10.0"}.__getitem__)
    status, _, untouched = install(patch)
    assert (status.state, untouched) == (State.UNSUPPORTED, True)


def test_disabled(patch, install, monkeypatch):
    monkeypatch.setenv(patching.DISABLE, "verl_log")
    status, _, untouched = install(patch)
    assert (status.state, untouched) == (State.DISABLED, True)
