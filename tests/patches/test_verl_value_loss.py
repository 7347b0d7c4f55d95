"""The two hooks that give a critic its value loss: in force, and left alone where verl is not as reviewed."""

import dataclasses
import importlib
import importlib.machinery
import os
import subprocess
import sys
import types

import pytest

from rl_estimators import imports, patching
from rl_estimators.patching import State

NAMES = ["verl_value_loss_v1", "verl_value_loss_legacy"]


@pytest.fixture(params=NAMES)
def patch(request):
    return importlib.import_module(f"rl_estimators.patches.{request.param}").PATCH


def test_listed_and_named_as_its_file(patch):
    assert patch in importlib.import_module("rl_estimators.patches").VERL
    assert patch.wrap.__module__ == f"rl_estimators.patches.{patch.name}"
    assert patch.remove_when


class Trainer:
    """Stands in for verl's trainer, whose method says what it found."""

    use_critic = True
    critic_wg = "workers"
    config = types.SimpleNamespace(critic="critic config")
    role_worker_mapping = types.MappingProxyType({})

    def build(self):
        self.calls.append(("build", dict(self.prepared)))
        return "built"


@pytest.fixture
def calls(monkeypatch):
    """What the hook and the trainer do, in order; the settings name the value loss huber."""
    from rl_estimators.verl import settings, value_loss

    calls = []
    monkeypatch.setattr(Trainer, "calls", calls, raising=False)
    monkeypatch.setattr(Trainer, "prepared", {}, raising=False)

    def apply(config, use_critic):
        calls.append(("apply", config, use_critic))
        Trainer.prepared["actor"] = True
        return settings.Settings(value_loss=settings.Loss("huber", {"delta": 2}))

    monkeypatch.setattr(settings, "apply", apply)
    monkeypatch.setattr(value_loss, "send", lambda *args: calls.append(("send", *args)))
    return calls


def test_settings_come_before_the_workers_and_the_loss_after(patch, calls):
    patch.wrap(Trainer.build)(Trainer())
    assert calls == [
        ("apply", Trainer.config, True),
        ("build", {"actor": True}),
        ("send", "workers", "critic config", "huber", {"delta": 2}, False),
    ]


@pytest.mark.parametrize("use_critic", [True, False])
def test_diagnostics_watch_verls_own_losses(patch, calls, monkeypatch, use_critic):
    from rl_estimators.verl import policy_updates, settings

    monkeypatch.setattr(settings, "apply", lambda *_: settings.Settings(diagnostics=True))
    monkeypatch.setattr(policy_updates, "send", lambda *args: calls.append(("watch", *args)))
    monkeypatch.setattr(Trainer, "use_critic", use_critic)
    monkeypatch.setattr(Trainer, "actor_rollout_wg", "actors", raising=False)
    patch.wrap(Trainer.build)(Trainer())
    critics = [("send", "workers", "critic config", None, {}, True)] if use_critic else []
    assert calls == [("build", {}), *critics, ("watch", "actors", Trainer.config)]


@pytest.mark.filterwarnings("ignore")  # of the imports of verl's workers
@pytest.mark.parametrize("role", ["ActorRolloutRef", "Critic"])
def test_workers_that_are_not_verls_keep_the_loss_that_they_set(patch, calls, monkeypatch, caplog, role):
    """What is sent to watch verl's loss calls verl's: a class of the user's may train with another."""
    import ray
    from verl.trainer.ppo.utils import Role
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    from rl_estimators.verl import policy_updates, settings

    verls = {Role.ActorRolloutRef: ActorRolloutRefWorker, Role.Critic: TrainingWorker}
    theirs = type("Theirs", (verls[Role[role]],), {"__module__": "their_package"})
    mapping = {key: ray.remote(theirs if key.name == role else cls) for key, cls in verls.items()}
    monkeypatch.setattr(settings, "apply", lambda *_: settings.Settings(diagnostics=True))
    monkeypatch.setattr(policy_updates, "send", lambda *args: calls.append(("watch", *args)))
    monkeypatch.setattr(Trainer, "actor_rollout_wg", "actors", raising=False)
    monkeypatch.setattr(Trainer, "role_worker_mapping", mapping)
    with caplog.at_level("WARNING"):
        patch.wrap(Trainer.build)(Trainer())
    assert [call[0] for call in calls] == ["build", "send" if role != "Critic" else "watch"]
    assert "their_package.Theirs may have a loss of its own, so no diagnostics of its updates" in caplog.text


def test_without_a_value_loss_nothing_is_sent(patch, calls, monkeypatch):
    from rl_estimators.verl import settings

    monkeypatch.setattr(settings, "apply", lambda *_: settings.Settings())
    patch.wrap(Trainer.build)(Trainer())
    assert calls == [("build", {})]


@pytest.fixture
def install(monkeypatch):
    """Installs a patch on a stand-in for verl's module, whose class and method are named as verl's."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.delenv(patching.STRICT, raising=False)
    monkeypatch.delenv(patching.DISABLE, raising=False)
    monkeypatch.setattr(patching, "_release", {"verl": "0.9.1"}.__getitem__)

    def build(patch, signature=None):
        owner, _, method = patch.attribute.partition(".")
        namespace = {}
        exec(f"def {method}{signature or patch.signature}:\n    return 'upstream'", namespace)
        module = types.ModuleType("rle_stand_in")
        module.__spec__ = importlib.machinery.ModuleSpec("rle_stand_in", None)
        setattr(module, owner, type(owner, (), {method: namespace[method]}))
        monkeypatch.setitem(sys.modules, "rle_stand_in", module)
        patching.install(dataclasses.replace(patch, module="rle_stand_in"))
        (status,) = patching.report()
        return status, getattr(getattr(module, owner), method) is namespace[method]

    return build


def test_applied(patch, install):
    status, untouched = install(patch)
    assert (status.state, status.detail, untouched) == (State.APPLIED, "", False)


def test_a_changed_signature_is_left_alone(patch, install):
    status, untouched = install(patch, "(self, config)")
    assert (status.state, untouched) == (State.DRIFTED, True)
    assert "expected (self), found (self, config)" in str(status)


def test_another_release_is_left_alone(patch, install, monkeypatch):
    monkeypatch.setattr(patching, "_release", {"verl": "0.10.0"}.__getitem__)
    status, untouched = install(patch)
    assert (status.state, untouched) == (State.UNSUPPORTED, True)


def test_disabled(patch, install, monkeypatch):
    monkeypatch.setenv(patching.DISABLE, patch.name)
    status, untouched = install(patch)
    assert (status.state, untouched) == (State.DISABLED, True)


CHECK = """
import importlib, sys, verl
from rl_estimators import patching
for name in sys.argv[1:]:
    patch = importlib.import_module("rl_estimators.patches." + name).PATCH
    importlib.import_module(patch.module)
    print(*(status.state.name for status in patching.report() if status.patch.name == name))
"""


@pytest.mark.verl
@pytest.mark.parametrize(("disabled", "state"), [("", "APPLIED"), (",".join(NAMES), "DISABLED")])
def test_on_the_installed_verl(disabled, state):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, *NAMES],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", patching.DISABLE: disabled},
        timeout=300,
    )
    assert done.stdout.split()[-2:] == [state, state], done.stderr
