"""The hook into the v1 trainer's advantage step: what becomes of it, and what it hands on.

What it does there: tests/verl/test_sessions.py and tests/verl/test_gdpo_components.py.
"""

import dataclasses
import importlib
import importlib.machinery
import sys
import types
import warnings

import pytest

from rl_estimators import imports, patching
from rl_estimators.patching import State

PATCH = importlib.import_module("rl_estimators.patches.verl_sessions").PATCH


@pytest.fixture
def upstream():
    """The real module, with our hooks; what is imported beside the stand-in never gets them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(PATCH.module)


@pytest.fixture
def stand_in(monkeypatch):
    """Arms the patch for a stand-in for upstream, whose function has the given signature and returns its arguments."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.delenv(patching.STRICT, raising=False)
    versions = {"verl": "0.9.1"}
    monkeypatch.setattr(patching, "_release", versions.__getitem__)

    def arm(signature=PATCH.signature, release="0.9.1"):
        versions["verl"] = release
        module = types.ModuleType("rle_stand_in")
        module.__spec__ = importlib.machinery.ModuleSpec("rle_stand_in", None)
        exec(f"def {PATCH.attribute}{signature}:\n    return locals()", vars(module))
        original = getattr(module, PATCH.attribute)
        monkeypatch.setitem(sys.modules, "rle_stand_in", module)
        patching.install(dataclasses.replace(PATCH, module="rle_stand_in"))
        (status,) = patching.report()
        return status, original, lambda: getattr(module, PATCH.attribute)

    return arm


def test_listed_and_named_as_its_file():
    assert PATCH.name == "verl_sessions"
    assert PATCH in importlib.import_module("rl_estimators.patches").VERL
    assert PATCH.remove_when


def test_applied_and_put_back(stand_in):
    status, original, now = stand_in()
    assert (status.state, status.detail) == (State.APPLIED, "")
    assert now() is not original
    patching.uninstall(PATCH.name)
    assert now() is original


def test_a_changed_signature_is_left_alone(stand_in):
    status, original, now = stand_in(signature="(data, batch, adv_estimator)")
    assert (status.state, now()) == (State.DRIFTED, original)
    assert f"expected {PATCH.signature}, found (data, batch, adv_estimator)" in str(status)


@pytest.mark.parametrize("release", ["0.8.0", "0.10.0"])
def test_another_release_is_left_alone(release, stand_in):
    status, original, now = stand_in(release=release)
    assert (status.state, now()) == (State.UNSUPPORTED, original)


def test_disabled_by_name(stand_in, monkeypatch):
    monkeypatch.setenv(patching.DISABLE, PATCH.name)
    status, original, now = stand_in()
    assert (status.state, now()) == (State.DISABLED, original)


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
def test_an_estimator_that_is_not_ours_is_verls_alone(upstream, stand_in, monkeypatch):
    """Whatever way the arguments are given; nothing is read from verl's queue."""
    monkeypatch.setitem(sys.modules, "transfer_queue", None)  # importing it fails
    _, original, now = stand_in()
    for arguments, named in (
        (("batch", ["a_0_0"], "nobodys", 0.5), {"config": "its own"}),
        (("batch", ["a_0_0"], "nobodys", 0.5, 0.9, 2, False, "its own"), {}),
        ((), {"data": "batch", "batch_keys": ["a_0_0"], "adv_estimator": "nobodys", "lam": 0.9}),
    ):
        assert now()(*arguments, **named) == original(*arguments, **named)


@pytest.mark.verl
def test_the_reviewed_signature_is_that_of_the_installed_verl(upstream):
    assert patching.signature(getattr(upstream, PATCH.attribute)) == PATCH.signature
