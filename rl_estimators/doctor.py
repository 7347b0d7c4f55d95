"""What ``rl-estimators doctor`` looks at: versions, the entry point, what is registered, which hooks hold."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet

from rl_estimators import patching
from rl_estimators.registry import ADV_ESTIMATORS

__all__ = ["Finding", "examine"]

PYTHON = ">=3.10,<3.13"
VERL = ">=0.9,<0.10"
TRL = ">=1.12,<2"
INSTALL_VERL = "pip install 'rl-estimators[verl]'"
INSTALL_TRL = "pip install 'rl-estimators[trl]'"
_VERL_08 = "export VERL_USE_EXTERNAL_MODULES=rl_estimators.verl.plugin, or install verl 0.9"
REINSTALL = "pip install --force-reinstall --no-deps rl-estimators"
# What verl's trainers import and a plain `pip install verl` leaves out.
_VERL_NEEDS = ("ray", "fastapi", "uvicorn", "cachetools", "transfer_queue", "tensordict", "hydra")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        level: ``ok``, ``note`` (nothing to do) or ``bad`` (exit code 1).
        text: What was found.
        repair: The command or setting that repairs it.
    """

    level: Literal["ok", "note", "bad"]
    text: str
    repair: str = ""

    def __str__(self) -> str:
        sign = {"ok": "ok  ", "note": "note", "bad": "BAD "}[self.level]
        return f"{sign} {self.text}" + (f"\n     repair: {self.repair}" if self.repair else "")


def examine() -> list[Finding]:
    """Look at this environment. Imports verl if it is installed, which takes some seconds."""
    findings = [*_versions()]
    if _release("verl") and not any(finding.level == "bad" for finding in findings):
        findings += _verl()
    return findings


def _release(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    fits = SpecifierSet(PYTHON).contains(python, prereleases=True)
    yield Finding("ok" if fits else "bad", f"Python {python}", "" if fits else f"use a Python {PYTHON}")
    yield Finding("ok", f"rl-estimators {_release('rl-estimators')}, torch {_release('torch')}")
    for name, supported, install in (("verl", VERL, INSTALL_VERL), ("trl", TRL, INSTALL_TRL)):
        release = _release(name)
        if release is None:
            yield Finding("note", f"{name} is not installed", install)
        elif SpecifierSet(supported).contains(release, prereleases=True):
            yield Finding("ok", f"{name} {release}")
        elif name == "verl" and SpecifierSet("~=0.8.0").contains(release):
            yield Finding("note", f"verl {release}: estimators only, no hook is applied", _VERL_08)
        else:
            yield Finding("bad", f"{name} {release} is not supported, expected {supported}", install)
    if _release("verl") is None and _release("trl") is None:
        yield Finding("bad", "neither verl nor TRL is installed: only the functions work", INSTALL_VERL)


def _verl() -> Iterator[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl warns of each engine that is not installed
        yield from _plugged_into_verl()


def _plugged_into_verl() -> Iterator[Finding]:
    missing = [name for name in _VERL_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("bad", f"verl's trainers cannot be imported without {', '.join(missing)}", INSTALL_VERL)
        return
    seen = [e for e in importlib.metadata.entry_points(group="verl.plugins") if e.name == "rl_estimators"]
    if not seen:
        yield Finding("bad", "the entry point rl_estimators of verl.plugins is not installed", REINSTALL)
        return
    yield Finding("ok", f"entry point verl.plugins: {seen[0].value}")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "rl_estimators" not in {name.strip() for name in policy.split(",")}:
        yield Finding(
            "bad",
            f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps the plugin out",
            "unset VERL_USE_EXTERNAL_PLUGINS",
        )
        return
    yield from _registered()
    yield from _hooks()


def _registered() -> Iterator[Finding]:
    """Import verl, which loads the plugin, and look into its registry."""
    try:
        core_algos = importlib.import_module("verl.trainer.ppo.core_algos")
    except Exception as error:
        yield Finding("bad", f"verl cannot be imported: {type(error).__name__}: {error}", INSTALL_VERL)
        return
    plugin = sys.modules.get("rl_estimators.verl.plugin")
    for failure in getattr(plugin, "failures", ["the plugin was not loaded"]):
        yield Finding("bad", failure, "see the traceback above")
    names = {alias for name in ADV_ESTIMATORS.names() for alias in (name, f"rle_{name}")}
    ours = sorted(
        name
        for name, function in core_algos.ADV_ESTIMATOR_REGISTRY.items()
        if name in names and function.__module__.startswith("rl_estimators.")
    )
    missing = [name for name in ADV_ESTIMATORS.names() if f"rle_{name}" not in ours]
    if missing:
        yield Finding("bad", f"not registered in verl: {', '.join(missing)}", REINSTALL)
    yield Finding("ok", f"algorithm.adv_estimator knows {', '.join(ours)}")


def _hooks() -> Iterator[Finding]:
    """Import what each hook waits for and say what became of the hook."""
    for status in patching.report():
        if status.state is patching.State.PENDING:
            try:
                importlib.import_module(status.patch.module)
            except Exception as error:
                yield Finding("bad", f"{status.patch.module}: {type(error).__name__}: {error}", INSTALL_VERL)
    for status in patching.report():
        if status.healthy and (changed := patching.changed_body(status)):
            yield Finding("note", f"hook {status}, though {changed}")
        else:
            yield Finding("ok" if status.healthy else "bad", f"hook {status}", _repair(status))


def _repair(status: patching.Status) -> str:
    """What helps against a hook's state; nothing where nothing is wrong."""
    patch = status.patch
    install = f"pip install '{patch.distribution}{patch.releases}'"
    without = f"to do without: export {patching.DISABLE}={patch.name}"
    if status.late:
        modules = ", ".join(sorted({holder.rpartition(".")[0] for holder in status.late}))
        return f"import {patch.distribution} before {modules}; {without}"
    if status.state is patching.State.UNSUPPORTED:
        return install
    if status.state is patching.State.DRIFTED:
        return f"{install}, if that is not what is installed; {without}"
    if status.state is patching.State.FAILED:
        return f"this is a defect of rl-estimators: report the line above; {without}"
    return ""
