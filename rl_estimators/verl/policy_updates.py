"""The actor's updates watched, in verl's workers, whichever policy loss it trains with.

verl's workers take the function to call from the trainer, by ``actor_rollout_wg.set_loss_fn``. The function sent here is
:func:`policy_loss`; it calls verl's, which computes the loss as ever, and takes note of the log-probabilities that the
policy loss gets.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from rl_estimators.diagnostics.updates import policy_sums
from rl_estimators.verl.worker_losses import as_metrics, losses, replaced

__all__ = ["policy_loss", "send"]

_LOOK_UP = "get_policy_loss_fn"
_INPUTS = ("log_prob", "old_log_prob", "response_mask")


def send(actor_wg: Any, config: Any) -> None:
    """Make the actor's workers report sums over their updates.

    With distillation verl trains with another function, which stays.

    Args:
        actor_wg: verl's worker group of the actor, with its model loaded.
        config: verl's whole configuration.
    """
    distillation = config.get("distillation")
    if distillation is not None and distillation.get("enabled"):
        return
    as_dataclass = importlib.import_module("verl.utils.config").omega_conf_to_dataclass
    actor = as_dataclass(config.actor_rollout_ref.actor)  # what verl's own workers bind their loss to
    actor_wg.set_loss_fn(functools.partial(policy_loss, config=actor))


def policy_loss(
    config: Any, model_output: Any, data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """Compute verl's ``ppo_loss``, and sums over the ratios of the same micro-batch, in the actor's workers.

    Args:
        config: verl's ``ActorConfig``.
        model_output: As for verl's function.
        data: As for verl's function.
        dp_group: As for verl's function.
    """
    module, seen = losses(), _Seen(losses().get_policy_loss_fn)
    with replaced(module, _LOOK_UP, seen):
        loss, metrics = module.ppo_loss(config, model_output, data, dp_group)
    return loss, {**metrics, **as_metrics(_sums(seen.calls, data), f"{module.__name__}.ppo_loss")}


def _sums(calls: Sequence[Mapping[str, Any]], data: Any) -> dict[str, Tensor]:
    """Of the one call that is expected; nothing of any others."""
    if len(calls) != 1 or not all(name in calls[0] for name in _INPUTS):
        return {}
    new, old, mask = (calls[0][name] for name in _INPUTS)
    reference = None
    if "ref_log_prob" in data:
        reference = data.select("ref_log_prob").to_padded_tensor()["ref_log_prob"]
    return policy_sums(new.detach(), old, mask, reference)


class _Seen:
    """verl's look-up of policy losses; keeps what the one that it finds is called with."""

    def __init__(self, original: Callable[[str], Callable[..., Any]]) -> None:
        self._original = original
        self.calls: list[dict[str, Any]] = []

    def __call__(self, loss_mode: str) -> Callable[..., Any]:
        function = self._original(loss_mode)

        def call(*args: Any, **given: Any) -> Any:
            self.calls.append(given)
            return function(*args, **given)

        return call
