"""What verl loads through its entry-point group ``verl.plugins``, in the driver and in every Ray worker.

verl imports this module at the end of its own ``__init__``, when none of its trainers are loaded, and hides
what it raises in a DEBUG message. So this module only arms callbacks for later imports, prints its failures
to stderr itself and keeps them in :data:`failures` for ``rl-estimators doctor``. It is the one module of this
package whose import has side effects.
"""

import functools
import importlib
import os
import sys
import traceback
from types import ModuleType

from rl_estimators import patching
from rl_estimators.imports import when_imported

HOOKS = (  # a module of somebody else's, and what to call with it once it has been imported
    ("verl.plugin.platform", "rl_estimators.verl.platform:register"),
    ("verl.trainer.ppo.core_algos", "rl_estimators.verl.estimators:offer"),
    ("verl.trainer.ppo.core_algos", "rl_estimators.verl.policy_losses:offer"),
    ("verl.workers.rollout.base", "rl_estimators.verl.rollout:register_adapter"),
    ("verl.workers.rollout.replica", "rl_estimators.verl.rollout:register_replica"),
)
PRESETS = ("hydra._internal.core_plugins", "rl_estimators.verl.presets:offer")
failures: list[str] = []


def load() -> None:
    """Arm every hook into verl. Imports nothing of verl's."""
    for module, target in HOOKS:
        when_imported(module, functools.partial(_call, target))
    patches = importlib.import_module("rl_estimators.patches").VERL  # by name: nothing imports patches
    for patch in patches:
        patching.install(patch)
    module, target = PRESETS  # after the patches, as they ask whether one is in force
    when_imported(module, functools.partial(_call, target))
    if unknown := patching.disabled() - {"all", *(patch.name for patch in patches)}:
        known = ", ".join(patch.name for patch in patches)
        print(
            f"rl_estimators: {patching.DISABLE} names no hook {', '.join(sorted(unknown))}; there are {known}",
            file=sys.stderr,
            flush=True,
        )


def _call(target: str, module: ModuleType) -> None:
    """Call the function at ``module:name``. What it raises is reported; it must not break verl's import."""
    path, name = target.split(":")
    try:
        getattr(importlib.import_module(path), name)(module)
    except Exception as error:
        _tell(f"{target} failed on {module.__name__}", error)
        if os.environ.get(patching.STRICT) == "1":
            raise


def _tell(what: str, error: Exception) -> None:
    failures.append(f"{what}: {type(error).__name__}: {error}")
    traceback.print_exc()
    print(f"rl_estimators: NOT fully working in verl: {failures[-1]}", file=sys.stderr, flush=True)


try:
    load()
except Exception as error:
    _tell("the plugin could not be loaded", error)
    raise
