"""verl's ``core_algos``, where estimators and policy losses are registered, and how its configuration names one."""

import importlib
from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

__all__ = ["estimator_name", "estimators", "module", "policy_losses"]


def module() -> ModuleType:
    """The module itself; once it is imported, our functions are registered there."""
    return importlib.import_module("verl.trainer.ppo.core_algos")


def estimators() -> MutableMapping[str, Any]:
    """All advantage estimators that verl knows, by name: its own registry."""
    registry: MutableMapping[str, Any] = module().ADV_ESTIMATOR_REGISTRY
    return registry


def policy_losses() -> MutableMapping[str, Any]:
    """All policy losses that verl knows, by name: its own registry."""
    registry: MutableMapping[str, Any] = module().POLICY_LOSS_REGISTRY
    return registry


def estimator_name(adv_estimator: Any) -> str:
    """The name in ``algorithm.adv_estimator``, which may be a string or a member of verl's enum."""
    return str(getattr(adv_estimator, "value", adv_estimator))
