"""The three hooks behind the greedy rollouts: what becomes of them, and that Ray's workers have theirs."""

import dataclasses
import importlib
import importlib.machinery
import os
import subprocess
import sys
import types
import warnings

import pytest

from rl_estimators import imports, patching
from rl_estimators.patching import State

NAMES = ["verl_greedy_session", "verl_greedy_colocated", "verl_greedy_baselines"]


@pytest.fixture(params=NAMES)
def patch(request):
    return importlib.import_module(f"rl_estimators.patches.{request.param}").PATCH


@pytest.fixture
def stand_in(monkeypatch):
    """Arms a patch for a stand-in for upstream, whose method has the given signature."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.delenv(patching.STRICT, raising=False)
    versions = {"verl": "0.9.1"}
    monkeypatch.setattr(patching, "_release", versions.__getitem__)

    def arm(patch, signature=None, release="0.9.1"):
        versions["verl"] = release
        owner, method = patch.attribute.split(".")
        namespace = {}
        exec(f"def {method}{signature or patch.signature}:\n    return 'upstream'", namespace)
        module = types.ModuleType("rle_stand_in")
        module.__spec__ = importlib.machinery.ModuleSpec("rle_stand_in", None)
        monkeypatch.setitem(sys.modules, "rle_stand_in", module)
        setattr(module, owner, type(owner, (), {method: namespace[method]}))
        patching.install(dataclasses.replace(patch, module="rle_stand_in", body_matters=False))
        (status,) = patching.report()
        return status, lambda: vars(getattr(module, owner))[method] is namespace[method]

    return arm


def test_listed_and_named_as_its_file(patch):
    assert patch in importlib.import_module("rl_estimators.patches").VERL
    assert patch.upstream.startswith("https://github.com/verl-project/verl/")
    assert patch.remove_when


def test_applied_and_put_back(patch, stand_in):
    status, untouched = stand_in(patch)
    assert (status.state, status.detail, untouched()) == (State.APPLIED, "", False)
    patching.uninstall(patch.name)
    assert untouched()


def test_a_changed_signature_is_left_alone(patch, stand_in):
    status, untouched = stand_in(patch, signature="(self, other)")
    assert (status.state, untouched()) == (State.DRIFTED, True)
    assert f"expected {patch.signature}, found (self, other)" in str(status)


@pytest.mark.parametrize("release", ["0.8.0", "0.10.0"])
def test_another_release_is_left_alone(patch, release, stand_in):
    status, untouched = stand_in(patch, release=release)
    assert (status.state, untouched()) == (State.UNSUPPORTED, True)


def test_disabled_by_name(patch, stand_in, monkeypatch):
    monkeypatch.setenv(patching.DISABLE, patch.name)
    status, untouched = stand_in(patch)
    assert (status.state, untouched()) == (State.DISABLED, True)


@pytest.mark.verl
def test_the_reviewed_signature_is_that_of_the_installed_verl(patch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(patch.module)
    owner, method = patch.attribute.split(".")
    found = patching.signature(vars(getattr(module, owner))[method])
    # Ray adds a parameter to what it is told of a worker's methods, if a test has loaded verl's worker already.
    assert found.replace("_ray_trace_ctx=None, ", "") == patch.signature


SEND = """
import sys, verl
from ray import cloudpickle
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
with open(sys.argv[1], "wb") as file:  # what Ray sends to the process of such a worker
    file.write(cloudpickle.dumps(AgentLoopWorkerTQ.__ray_metadata__.modified_class))
"""
RECEIVE = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    worker = pickle.load(file)
from rl_estimators import patching
method = worker._run_agent_loop.__wrapped__  # inside of Ray's wrapper, which comes by value, marks and all
print(getattr(method, patching._MARK, "verl's own"))
"""


def run(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1:]


@pytest.mark.verl
def test_a_worker_sent_by_ray_has_the_hook_of_its_own_process(tmp_path):
    sent, without = tmp_path / "sent", {"RL_ESTIMATORS_DISABLE_PATCHES": "verl_greedy_session"}
    run(SEND, sent)
    assert run(RECEIVE, sent) == ["verl_greedy_session"]
    assert run(RECEIVE, sent, **without) == ["verl's own"]
