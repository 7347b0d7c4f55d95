"""A critic of verl's trained with the value loss that ``+rl_estimators.value_loss.name=NAME`` names.

verl has one value loss, clipped, and no registry of others. Its workers take the function to call from the trainer,
though, by ``critic_wg.set_loss_fn``. The function sent here is :func:`value_loss`; it calls verl's, which unpads the
batch and knows the counts of the global batch, and replaces for the length of that call only what verl computes
per batch of values.

Metrics: verl's own ``critic/vf_loss``, ``critic/vf_clipfrac`` and ``critic/vpred_mean``; the loss's others as
``critic/rl_estimators/METRIC``; and ``critic/rl_estimators/value_loss/NAME`` is 1 in every update it was used in.

With diagnostics the function is sent for verl's own loss as well, and reports sums over what the loss gets.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl_estimators import calls
from rl_estimators.diagnostics.updates import value_sums
from rl_estimators.errors import PatchError
from rl_estimators.registry import VALUE_LOSSES, Spec
from rl_estimators.verl.worker_losses import as_metrics, losses, replaced

__all__ = ["INPUTS", "options", "send", "value_loss"]

INPUTS = ("vpreds", "values", "returns", "response_mask")
_ELEMENT_WISE = "compute_value_loss"


def send(
    critic_wg: Any, critic: Any, name: str | None, own: Mapping[str, Any], diagnosed: bool = False
) -> None:
    """Make the critic's workers train with the value loss ``name``.

    Args:
        critic_wg: verl's worker group of the critic, with its model loaded.
        critic: verl's critic configuration, a ``DictConfig``.
        name: One of :func:`rl_estimators.list_value_loss`; None for verl's own.
        own: Its options.
        diagnosed: Report sums for diagnostics.
    """
    as_dataclass = importlib.import_module("verl.utils.config").omega_conf_to_dataclass
    config = as_dataclass(critic)  # what verl's own trainers bind their value loss to
    function = functools.partial(value_loss, config=config, name=name, own=dict(own), diagnosed=diagnosed)
    critic_wg.set_loss_fn(function)


def options(spec: Spec, critic: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a value loss: ``own``, and verl's ``critic.cliprange_value`` where that is not given."""
    theirs = critic.get("cliprange_value")
    if theirs is None or "cliprange_value" not in spec.options:
        return dict(own)
    return {"cliprange_value": theirs, **own}


def value_loss(
    config: Any,
    model_output: Any,
    data: Any,
    dp_group: Any = None,
    *,
    name: str | None,
    own: Mapping[str, Any],
    diagnosed: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute verl's ``value_loss`` with the loss ``name`` in place of the clipped one, in the critic's workers.

    Args:
        config: verl's ``CriticConfig``.
        model_output: As for verl's function.
        data: As for verl's function.
        dp_group: As for verl's function.
        name: The value loss; None for verl's own.
        own: Its options, over :func:`options`.
        diagnosed: Report sums for diagnostics.

    Raises:
        PatchError: verl's function did not call what was replaced, so it computed some other loss.
    """
    module = losses()
    ours = None if name is None else _ElementWise(name, own, config)
    function = ours or module.compute_value_loss
    watched = _Watched(function, _reach(config, name, own)) if diagnosed else None
    with replaced(module, _ELEMENT_WISE, watched or function):
        loss, metrics = module.value_loss(config, model_output, data, dp_group)
    if ours is not None and ours.metrics is None:
        raise PatchError(
            f"{module.__name__}.value_loss no longer calls {_ELEMENT_WISE}, so rl_estimators.value_loss.name={name} "
            "cannot be put in its place; remove the setting to train with verl's own loss"
        )
    if watched is not None:
        metrics = {**metrics, **as_metrics(watched.sums, f"{module.__name__}.value_loss")}
    return loss, metrics if ours is None else {**metrics, **ours.named_metrics(metrics)}


def _reach(config: Any, name: str | None, own: Mapping[str, Any]) -> float | None:
    """How far a clipped value loss lets a value move; None for another one."""
    if name is None:
        return float(config.cliprange_value)
    spec = VALUE_LOSSES.spec(name)
    if not spec.is_ours or "cliprange_value" not in spec.options:
        return None
    return float({**spec.options, **options(spec, config, own)}["cliprange_value"])


@dataclass
class _Watched:
    """What is called as verl's ``compute_value_loss``; keeps the sums of its last call's inputs."""

    function: Callable[..., tuple[Tensor, Tensor]]
    reach: float | None
    sums: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(
        self, vpreds: Tensor, returns: Tensor, values: Tensor, response_mask: Tensor, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        self.sums = value_sums(values, returns, response_mask, vpreds.detach(), self.reach)
        return self.function(vpreds, returns, values, response_mask, *args, **more)


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

    def named_metrics(self, theirs: Mapping[str, Any]) -> dict[str, float]:
        """The loss's metrics as verl logs them, but for those that verl has computed itself."""
        found = {
            f"critic/rl_estimators/{key}": float(value.detach() if isinstance(value, Tensor) else value)
            for key, value in (self.metrics or {}).items()
            if f"critic/{key}" not in theirs
        }
        return {**found, f"critic/rl_estimators/value_loss/{self.name}": 1.0}
