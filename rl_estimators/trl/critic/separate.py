"""A critic that is a model of its own."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rl_estimators.errors import InputError
from rl_estimators.trl import counts, upstream
from rl_estimators.trl.critic.base import Critic, before_and_after
from rl_estimators.trl.critic.value_model import switch_off_dropout, value_model
from rl_estimators.trl.diagnostics import SOUND

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["SeparateCritic"]

_ROWS = (
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "values", "returns"),
    SOUND,
)


class SeparateCritic(Critic):
    """A value model beside the policy, with a backward pass of its own: the policy's gradient is what it was.

    Its weights are in fp32 (a model of yours: in its own type) and its forward pass under the trainer's mixed
    precision. Its dropout rates are set to 0.

    Args:
        trainer: The trainer whose policy it judges.
        model: A model of yours instead of one with the policy's backbone. Its forward pass takes ``input_ids`` and
            ``attention_mask``; gradient checkpointing is for you to enable.

    Raises:
        InputError: ``model`` has nothing to train, or shares its parameters with the policy.
    """

    def __init__(self, trainer: "EstimatorTrainer", model: nn.Module | None) -> None:
        self._name = "the critic" if model is None else f"value_model ({type(model).__name__})"
        model = value_model(trainer) if model is None else _checked(trainer, model)
        switch_off_dropout(model)
        # gradient checkpointing happens in training mode only
        self._checkpoints = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
        self._wrapped = trainer.accelerator.prepare_model(model)  # moves it, and shares its gradients in DDP
        super().__init__(trainer, model)

    @torch.no_grad()
    def values(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See :class:`Critic`; ``critic_micro_batch_size`` completions at a time."""
        self.module.eval()
        found = torch.cat([self._forward(self.module, rows) for rows in self._parts(batch)])
        return before_and_after(found, batch)

    def learn(self, inputs: dict[str, Any], loss: Tensor) -> Tensor:
        """Add the micro-batch's gradient to the critic's; the policy's loss is handed back as it is."""
        accelerator = self.trainer.accelerator
        self.module.train(self._checkpoints)
        step = counts.per_step(self.trainer, inputs, "train")
        parts = list(self._parts(inputs))
        for number, rows in enumerate(parts, 1):
            last = accelerator.sync_gradients and number == len(parts)
            with nullcontext() if last else accelerator.no_sync(self._wrapped):
                vpreds = before_and_after(self._forward(self._wrapped, rows), rows)[0]
                self._value_loss(vpreds, rows, step).backward()
        return loss

    def _parts(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The batch in slices that fit into memory."""
        args = self.trainer.args
        size = args.critic_micro_batch_size or args.per_device_train_batch_size
        present = {name: batch[name] for name in _ROWS if batch.get(name) is not None}
        for first in range(0, len(batch["completion_ids"]), size):
            yield {name: tensor[first : first + size] for name, tensor in present.items()}

    def _forward(self, model: nn.Module, rows: dict[str, Any]) -> Tensor:
        """``(B, P + T)`` values in fp32, checked: the model may be a user's."""
        ids, mask = upstream.attention(rows)
        with self.trainer.accelerator.autocast():
            output = model(input_ids=ids, attention_mask=mask)
        values = output
        if not isinstance(output, Tensor):
            values = getattr(output, "logits", None)
            if isinstance(values, Tensor) and values.shape == (*ids.shape, 1):
                values = values.squeeze(-1)
        if not isinstance(values, Tensor) or values.shape != ids.shape:
            raise InputError(
                f"{self._name} returned {_shown(output)} for ids of shape {tuple(ids.shape)}; expected a tensor of "
                f"that shape, or an output whose logits are {(*ids.shape, 1)}: a value for each position"
            )
        return values.float()


def _checked(trainer: "EstimatorTrainer", model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InputError(f"value_model is a {type(model).__name__}, expected a torch.nn.Module")
    own = {p.data_ptr() for p in trainer.model.parameters()}
    common = [name for name, p in model.named_parameters() if p.data_ptr() in own]
    if common:
        raise InputError(
            f"value_model shares {len(common)} parameters with the policy ({common[0]}, ...), which two optimizers "
            "would move; pass a copy, or set critic='shared' for a head on the policy itself"
        )
    return model


def _shown(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    logits = getattr(output, "logits", None)
    shape = f"logits {tuple(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
    return f"{type(output).__name__} with {shape}"
