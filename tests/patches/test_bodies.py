"""The sources of the hooked functions, as they were read."""

import dataclasses
import functools
import importlib
import importlib.metadata
import sys
import warnings

import pytest

from rl_estimators import imports, patching
from rl_estimators.errors import PatchError
from rl_estimators.patching import State

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

NAMES = [patch.name for patch in importlib.import_module("rl_estimators.patches").VERL]
RELY = ["verl_bootstrap", "verl_greedy_session", "verl_greedy_colocated", "verl_greedy_baselines"]


def load(name):
    return importlib.import_module(f"rl_estimators.patches.{name}").PATCH


@pytest.fixture
def installed(monkeypatch):
    """Applies a patch to the real verl with one change to its data, and puts everything back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in NAMES:  # with our hooks: what is imported below would never get them
            importlib.import_module(load(name).module)
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    applied = []

    def install(name, **change):
        patch = dataclasses.replace(load(name), name=f"{name}_again", needed=lambda: True, **change)
        # Ray adds a parameter to each method of a class that it makes an actor of, and we come late here.
        target = functools.reduce(getattr, patch.attribute.split("."), sys.modules[patch.module])
        patch = dataclasses.replace(patch, signature=patching.signature(target))
        patching.install(patch)
        applied.append(patch.name)
        return patching.report()[-1]

    yield install
    for name in applied:
        patching.uninstall(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_release_is_as_read(name, installed):
    """By way of the function that verl has, hooked already or not, and not of its file as in `make upstream`."""
    assert importlib.metadata.version("verl") in load(name).reviewed
    status = installed(name)
    assert (status.state, patching.changed_body(status)) == (State.APPLIED, "")


@pytest.mark.parametrize("name", NAMES)
def test_another_body(name, installed):
    """Stops the hooks that rely on it, and is told of the others."""
    assert load(name).body_matters == (name in RELY)
    status = installed(name, reviewed={"0.8.9": "0" * 12})
    told = "its body has changed: reviewed 000000000000 in 0.8.9, found "
    if name in RELY:
        assert status.state is State.DRIFTED
        assert status.detail.startswith(told)
        with pytest.raises(
            PatchError, match=r"remax needs a hook .* drifted: .*its body has changed: reviewed 0000"
        ):
            patching.require(status.patch.name, purpose="remax")
    else:
        assert status.state is State.APPLIED
        assert patching.changed_body(status).startswith(told)
