"""Building the model, and taking over the trainer's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers

from rl_estimators.errors import InputError
from rl_estimators.verl.rollout.options import Options

__all__ = ["WeightUpdate", "build"]


def build(model_config: Any, options: Options, device: torch.device) -> Any:
    """The causal language model of verl's ``HFModelConfig``, with the same attention as the actor.

    With ``load_format=dummy``, verl's default, the weights are random until the trainer sends its own.
    """
    kind = transformers.AutoModelForCausalLM
    trust = model_config.trust_remote_code
    if options.load_format == "dummy":
        model = kind.from_config(model_config.hf_config, dtype=options.dtype, trust_remote_code=trust)
    else:
        model = kind.from_pretrained(
            model_config.local_path,
            config=model_config.hf_config,
            dtype=options.dtype,
            trust_remote_code=trust,
        )
    return model.to(device).eval()


class WeightUpdate:
    """One transfer of all weights into ``model``, in any number of parts.

    Tied weights may arrive under any of their names, or all.
    """

    def __init__(self, model: Any) -> None:
        self._targets: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self._loaded: set[int] = set()

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy a part of the weights into the model.

        Raises:
            InputError: the model has no weight of that name, or it has another shape.
        """
        unexpected = sorted(set(weights) - set(self._targets))
        if unexpected:
            raise InputError(
                f"the trainer sent weights that the rollout model does not have: {_listed(unexpected)}; "
                f"it has {_listed(sorted(self._targets))}"
            )
        for name, value in weights.items():
            target = self._targets[name]
            if target.shape != value.shape:
                raise InputError(
                    f"the trainer sent {name} as {tuple(value.shape)}, the rollout model has it as "
                    f"{tuple(target.shape)}; both must be built from the same actor_rollout_ref.model.path"
                )
            target.copy_(value)
            self._loaded.add(id(target))

    def finish(self) -> None:
        """Make sure that every weight has arrived.

        Raises:
            InputError: some have not.
        """
        missing = [name for name, target in self._targets.items() if id(target) not in self._loaded]
        if missing:
            raise InputError(
                f"the trainer did not send these weights of the rollout model: {_listed(missing)}"
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest
