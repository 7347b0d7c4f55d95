"""Which of verl's trainers a configuration is for."""

from typing import Any

__all__ = ["is_experimental"]


def is_experimental(config: Any) -> bool:
    """Whether it is for ``verl/experimental``, whose configurations place the rollout in a node of its own.

    Those trainers take no value loss and decode nothing greedily: they build their critic and their batches
    without the functions that our hooks replace. In verl 0.9.1 no critic at all starts there: its worker has no
    ``init_model``, which both of them call.
    """
    return config.get("rollout") is not None
