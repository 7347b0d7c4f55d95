"""A critic that is a head on the policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_estimators.errors import PatchError
from rl_estimators.trl import counts, upstream
from rl_estimators.trl.critic.base import Critic, before_and_after
from rl_estimators.trl.critic.value_model import ValueHead, backbone_of

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["SharedCritic"]


class SharedCritic(Critic):
    """A value head on the policy's hidden states: one forward and one backward pass for both.

    The value loss is added to the policy's loss, so its gradient flows into the policy's backbone (with PEFT into the
    adapters), is clipped together with the policy's, and moves them at the policy's learning rate, ``vf_coef`` times.
    Only the head has the critic's optimizer. While the critic warms up the policy's gradients are dropped, those of
    the value loss among them, and the head learns alone.

    Args:
        trainer: The trainer whose policy carries the head.
    """

    def __init__(self, trainer: "EstimatorTrainer") -> None:
        self._backbone = backbone_of(trainer.model)
        self._seen: list[Tensor] = []
        self._watching = False
        self._backbone.register_forward_hook(self._see)
        head = ValueHead(trainer.model.config.get_text_config().hidden_size)
        super().__init__(trainer, head.to(trainer.accelerator.device))

    @torch.no_grad()
    def values(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See :class:`Critic`; one more forward pass of the policy's backbone, a micro-batch at a time."""
        ids, mask = upstream.attention(batch)
        size = self.trainer.args.per_device_train_batch_size
        training = self._backbone.training
        self._backbone.eval()
        try:
            with self.trainer.accelerator.autocast():
                found = [
                    self.module(self._backbone(input_ids=rows, attention_mask=seen, use_cache=False)[0])
                    for rows, seen in zip(ids.split(size), mask.split(size), strict=True)
                ]
        finally:
            self._backbone.train(training)
        return before_and_after(torch.cat(found), batch)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the hidden states that the policy's forward pass computes."""
        self._seen, self._watching = [], True
        try:
            yield
        finally:
            self._watching = False

    def learn(self, inputs: dict[str, Any], loss: Tensor) -> Tensor:
        """The policy's loss and the value loss of the micro-batch, to be differentiated together."""
        seen, self._seen = self._seen, []
        expected = upstream.attention(inputs)[0].shape
        if len(seen) != 1 or seen[0].shape[:2] != expected:
            shapes = [tuple(hidden.shape) for hidden in seen]
            raise PatchError(
                f"TRL ran the policy's {type(self._backbone).__name__} on {shapes} for a micro-batch of "
                f"{tuple(expected)}, and a value head needs it once and whole; set critic='separate'"
            )
        vpreds = before_and_after(self.module(seen[0]), inputs)[0]
        return loss + self._value_loss(vpreds, inputs, counts.per_step(self.trainer, inputs, "train"))

    def step(self) -> None:
        """See :class:`Critic`. DDP does not know the head, whose gradient is averaged here."""
        accelerator = self.trainer.accelerator
        if accelerator.sync_gradients and accelerator.num_processes > 1:
            for parameter in self.updates.parameters:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
        super().step()

    def _see(self, module: Any, args: Any, output: Any) -> None:
        if self._watching:
            self._seen.append(output[0])
