"""What becomes of each patch when upstream or the environment is not as reviewed, on a stand-in for upstream."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import sys
import types
import warnings

import pytest

from rl_estimators import imports, patching
from rl_estimators.patching import State

NAMES = [
    "verl_critic_attention",
    "verl_cpu_offload_policy",
    "verl_cpu_process_group",
    "verl_trl_value_head",
    "verl_value_head_error",
]
CPU = [name for name in NAMES if "_cpu_" in name]
TRL = ["verl_trl_value_head", "verl_value_head_error"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def original(monkeypatch):
    """Builds an upstream module of its own for a patch, whose target has the given signature."""
    monkeypatch.setattr(imports, "_callbacks", {})
    monkeypatch.setattr(patching, "_statuses", {})
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.delenv(patching.STRICT, raising=False)
    versions = {"verl": "0.9.1", "trl": "1.16.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(patching, "_release", versions.__getitem__)  # patching looks each up once

    def build(patch, signature=None):
        namespace = {}
        exec(f"def target{signature or patch.signature}:\n    return 'upstream'", namespace)
        module = types.ModuleType("rle_stand_in")
        module.__spec__ = importlib.machinery.ModuleSpec("rle_stand_in", None)
        monkeypatch.setitem(sys.modules, "rle_stand_in", module)
        setattr(module, patch.attribute, namespace["target"])
        patching.install(dataclasses.replace(patch, module="rle_stand_in"))
        (status,) = patching.report()
        return status, getattr(module, patch.attribute) is namespace["target"], module

    build.versions = versions
    return build


def load(name):
    return importlib.import_module(f"rl_estimators.patches.{name}").PATCH


def test_every_patch_is_listed_and_named_as_its_file(name):
    patch = load(name)
    assert patch.name == name
    assert patch in importlib.import_module("rl_estimators.patches").VERL
    assert patch.upstream.startswith("https://github.com/verl-project/verl/")
    assert patch.remove_when


def test_applied_and_put_back(name, original):
    status, untouched, module = original(load(name))
    assert (status.state, status.detail, untouched) == (State.APPLIED, "", False)
    patching.uninstall(name)
    assert getattr(module, load(name).attribute).__code__.co_name == "target"


def test_a_changed_signature_is_left_alone(name, original):
    status, untouched, _ = original(load(name), signature="(something, quite, other)")
    assert (status.state, untouched) == (State.DRIFTED, True)
    assert "found (something, quite, other)" in str(status)


@pytest.mark.parametrize("release", ["0.8.0", "0.10.0"])
def test_another_release_is_left_alone(name, release, original):
    original.versions["verl"] = release
    status, untouched, _ = original(load(name))
    assert (status.state, untouched) == (State.UNSUPPORTED, True)
    assert f"verl {release}, reviewed for >=0.9,<0.10" in str(status)


def test_disabled_by_name(name, original, monkeypatch):
    monkeypatch.setenv(patching.DISABLE, f"another, {name}")
    status, untouched, _ = original(load(name))
    assert (status.state, untouched) == (State.DISABLED, True)


@pytest.mark.parametrize("platform", ["", "nvidia"])
@pytest.mark.parametrize("cpu_patch", CPU)
def test_cpu_patches_are_for_the_cpu_platform_only(cpu_patch, platform, original, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", platform)
    status, untouched, _ = original(load(cpu_patch))
    assert (status.state, untouched) == (State.UNNEEDED, True)


@pytest.mark.parametrize(
    ("platform", "installed", "state"),
    [
        ("cpu", True, State.APPLIED),  # installed or not, it does not run there
        ("cpu", False, State.APPLIED),
        ("nvidia", False, State.APPLIED),  # a GPU is not enough: flash-attention is a package of its own
        ("", False, State.APPLIED),
        ("nvidia", True, State.UNNEEDED),
        ("", True, State.UNNEEDED),
    ],
)
def test_the_critic_s_attention_is_mended_where_flash_attention_cannot_run(
    platform, installed, state, original, monkeypatch
):
    monkeypatch.setenv("VERL_PLATFORM", platform)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert original(load("verl_critic_attention"))[0].state is state


@pytest.mark.parametrize("trl_patch", TRL)
@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("0.9.6", State.UNNEEDED),
        ("1.12.0", State.UNNEEDED),  # the last release with a value-head model
        ("1.12.9.post1", State.UNNEEDED),
        ("1.13.0.dev0", State.APPLIED),
        ("1.13.0", State.APPLIED),
        ("2.0", State.APPLIED),
    ],
)
def test_trl_patches_are_for_a_trl_without_value_heads_only(trl_patch, release, state, original):
    original.versions["trl"] = release
    assert original(load(trl_patch))[0].state is state


@pytest.mark.parametrize("trl_patch", TRL)
def test_without_trl_nothing_is_to_be_mended(trl_patch, original, monkeypatch):
    def version(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert original(load(trl_patch))[0].state is State.UNNEEDED


@pytest.mark.verl
def test_the_reviewed_signature_is_that_of_the_installed_verl(name):
    patch = load(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(patch.module)
    assert patching.signature(getattr(module, patch.attribute)) == patch.signature
