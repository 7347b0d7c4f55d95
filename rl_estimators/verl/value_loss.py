"""A critic of verl's trained with the value loss that ``+rl_estimators.value_loss.name=NAME`` names.

verl has one value loss, clipped, and no registry of others. Its workers take the function to call from the trainer,
though, by ``critic_wg.set_loss_fn``. The function sent here is :func:`value_loss`; it calls verl's, which unpads the
batch and knows the counts of the global batch, and replaces for the length of that call only what verl computes
per batch of values.

Metrics: verl's own ``critic/vf_loss``, ``critic/vf_clipfrac`` and ``critic/vpred_mean``; the loss's others as
``critic/rl_estimators/METRIC``; and ``critic/rl_estimators/value_loss/NAME`` is 1 in every update it was used in.
"""

import functools
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rl_estimators import calls
from rl_estimators.errors import PatchError
from rl_estimators.registry import VALUE_LOSSES, Spec

__all__ = ["INPUTS", "options", "send", "value_loss"]

INPUTS = ("vpreds", "values", "returns", "response_mask")
_LOSSES = "verl.workers.utils.losses"
_ELEMENT_WISE = "compute_value_loss"


def send(critic_wg: Any, critic: Any, name: str, own: Mapping[str, Any]) -> None:
    """Make the critic's workers train with the value loss ``name``.

    Args:
        critic_wg: verl's worker group of the critic, with its model loaded.
        critic: verl's critic configuration, a ``DictConfig``.
        name: One of :func:`rl_estimators.list_value_loss`.
        own: Its options.
    """
    as_dataclass = importlib.import_module("verl.utils.config").omega_conf_to_dataclass
    config = as_dataclass(critic)  # what verl's own trainers bind their value loss to
    critic_wg.set_loss_fn(functools.partial(value_loss, config=config, name=name, own=dict(own)))


def options(spec: Spec, critic: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a value loss: ``own``, and verl's ``critic.cliprange_value`` where that is not given."""
    theirs = critic.get("cliprange_value")
    if theirs is None or "cliprange_value" not in spec.options:
        return dict(own)
    return {"cliprange_value": theirs, **own}


def value_loss(
    config: Any, model_output: Any, data: Any, dp_group: Any = None, *, name: str, own: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Compute verl's ``value_loss`` with the loss ``name`` in place of the clipped one, in the critic's workers.

    Args:
        config: verl's ``CriticConfig``.
        model_output: As for verl's function.
        data: As for verl's function.
        dp_group: As for verl's function.
        name: The value loss.
        own: Its options, over :func:`options`.

    Raises:
        PatchError: verl's function did not call what was replaced, so it computed some other loss.
    """
    losses = importlib.import_module(_LOSSES)
    ours = _ElementWise(name, own, config)
    with _replaced(losses, ours):
        loss, metrics = losses.value_loss(config, model_output, data, dp_group)
    if ours.metrics is None:
        raise PatchError(
            f"{_LOSSES}.value_loss no longer calls {_ELEMENT_WISE}, so rl_estimators.value_loss.name={name} cannot be "
            "put in its place; remove the setting to train with verl's own loss"
        )
    for key, value in ours.metrics.items():
        if f"critic/{key}" not in metrics:
            metrics[f"critic/rl_estimators/{key}"] = float(
                value.detach() if isinstance(value, Tensor) else value
            )
    return loss, {**metrics, f"critic/rl_estimators/value_loss/{name}": 1.0}


@dataclass
class _ElementWise:
    """The loss ``name``, called as verl calls its ``compute_value_loss``; keeps the metrics of its last call."""

    name: str
    own: Mapping[str, Any]
    config: Any
    metrics: Mapping[str, Any] | None = None

    def __call__(
        self,
        vpreds: Tensor,
        returns: Tensor,
        values: Tensor,
        response_mask: Tensor,
        cliprange_value: float,
        loss_agg_mode: str = "token-mean",
        **global_batch_info: Any,
    ) -> tuple[Tensor, Tensor]:
        spec = VALUE_LOSSES.spec(self.name)
        given = options(spec, self.config, self.own)
        if spec.takes_config:
            given["config"] = self.config
        loss, self.metrics = calls.value_loss(
            self.name,
            vpreds=vpreds,
            values=values,
            returns=returns,
            response_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            global_batch_info=global_batch_info,
            **given,
        )
        return loss, torch.as_tensor(self.metrics.get("vf_clipfrac", 0.0))


@contextmanager
def _replaced(losses: ModuleType, replacement: Any) -> Iterator[None]:
    original = getattr(losses, _ELEMENT_WISE)
    setattr(losses, _ELEMENT_WISE, replacement)
    try:
        yield
    finally:
        setattr(losses, _ELEMENT_WISE, original)
