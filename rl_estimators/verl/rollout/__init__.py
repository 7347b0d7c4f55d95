"""A rollout engine for verl on plain transformers: ``actor_rollout_ref.rollout.name=hf``.

Made for smoke runs and debugging on a CPU or on one GPU per worker, not for throughput: no paged attention,
no continuous batching, weights sent through Ray's object store. What it cannot honour it refuses.

========== ==================================================================================
options    what it accepts of verl's configuration
request    what it accepts of a request's sampling parameters
sampling   pure functions on logits, and each request's own random stream
generation batched generation with a key-value cache
model      building the model, taking over the trainer's weights
server     the Ray actor: admission, batching, life cycle
replica    starts the server beside its training worker
adapter    lives in the training worker and pushes its weights
========== ==================================================================================

This module is imported by post-import hooks, so it must stay light.
"""

import logging
from types import ModuleType
from typing import Any

__all__ = ["NAME", "register_adapter", "register_replica"]

NAME = "hf"
ADAPTER = "rl_estimators.verl.rollout.adapter.HFAdapter"

logger = logging.getLogger(__name__)


def register_adapter(module: ModuleType) -> None:
    """Enter the adapter into ``verl.workers.rollout.base``, unless verl has an engine of that name."""
    taken = module._ROLLOUT_REGISTRY.setdefault((NAME, "async"), ADAPTER)
    if taken != ADAPTER:
        logger.warning(
            "rl_estimators: rollout.name=%s means %s in this verl; ours is not offered", NAME, taken
        )


def register_replica(module: ModuleType) -> None:
    """Enter the replica into ``verl.workers.rollout.replica``, unless verl has an engine of that name."""
    registry = module.RolloutReplicaRegistry
    taken = registry._registry.get(NAME)
    if taken is None:
        registry.register(NAME, _load_replica)
    elif taken is not _load_replica:
        logger.warning(
            "rl_estimators: rollout.name=%s means %r in this verl; ours is not offered", NAME, taken
        )


def _load_replica() -> type[Any]:
    from rl_estimators.verl.rollout.replica import HFReplica

    return HFReplica
