"""What a critic is to the trainer, and what every critic does in the same way."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rl_estimators.calls import value_loss
from rl_estimators.trl import finite, upstream
from rl_estimators.trl.critic import checkpoint
from rl_estimators.trl.critic.metrics import TokenMeans, explained
from rl_estimators.trl.critic.updates import Updates

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["Critic"]


class Critic(ABC):
    """A value function beside the policy, with an optimizer of its own.

    A training micro-batch goes through :meth:`watching` (around the policy's forward pass), :meth:`learn` (the value
    loss and its gradient) and, once the policy's gradient is there as well, :meth:`step`.

    Args:
        trainer: The trainer whose policy the critic judges.
        module: What the critic's optimizer updates and its checkpoint holds.
    """

    def __init__(self, trainer: "EstimatorTrainer", module: nn.Module) -> None:
        self.trainer = trainer
        self.module = module
        self.updates = Updates(trainer, module)
        self._means = TokenMeans(trainer.accelerator)
        self._loss_options = trainer.args.value_loss_options()

    @abstractmethod
    def values(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Values without gradient: ``(B, T)`` before each completion token, ``(B,)`` after the last one."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Entered around the policy's forward pass of a training micro-batch."""
        yield

    @abstractmethod
    def learn(self, inputs: dict[str, Any], loss: Tensor) -> Tensor:
        """Learn from a micro-batch (keys ``values`` and ``returns`` included); returns the loss to differentiate."""

    def step(self) -> None:
        """Take the critic's optimizer step, if the policy is about to take one."""
        if not self.trainer.accelerator.sync_gradients:
            return
        metrics = self.trainer._metrics["train"]
        learnt = self.updates.step()
        for name, number in {**self._means.pop(), **learnt}.items():
            metrics[f"critic/{name}"].append(number)
        if learnt["update_skipped"]:
            finite.warn(self.trainer, "critic", "critic/update_skipped")

    def create_scheduler(self, num_training_steps: int) -> None:
        """Make the learning-rate schedule, once it is known how many optimizer steps there will be."""
        self.updates.create_scheduler(num_training_steps)

    def log_rollout(self, values: Tensor, returns: Tensor, mask: Tensor, mode: str) -> None:
        """Log how well the values of a batch, of all processes, explained its returns; all are ``(B, T)``."""
        for name, number in explained(values, returns, mask).items():
            self.trainer._metrics[mode][f"critic/{name}"].append(number)

    def save(self, folder: Path, optimizer: bool = True) -> None:
        """Write the weights, and what is needed to go on training, into ``folder``."""
        state = self.updates.state_dict() if optimizer else {}
        checkpoint.write(folder, self.module, state)

    def load(self, folder: Path) -> None:
        """Read back what :meth:`save` wrote.

        Raises:
            InputError: a file is missing, cannot be read, or is of another critic.
        """
        checkpoint.read(folder, self.module, self.updates.load_state_dict)

    def load_weights(self, folder: Path) -> None:
        """Read back the weights alone.

        Raises:
            InputError: the file is missing, cannot be read, or is of another critic.
        """
        checkpoint.read_weights(folder, self.module)

    def _value_loss(self, vpreds: Tensor, rows: dict[str, Any], counts: dict[str, Any]) -> Tensor:
        """``vf_coef`` times the value loss of some rows, as a share of the optimizer step's loss."""
        config, mask = self.trainer.args, upstream.response_mask(rows)
        loss, metrics = value_loss(
            config.value_loss,
            vpreds=vpreds,
            values=rows["values"],
            returns=rows["returns"],
            response_mask=mask,
            global_batch_info=counts,
            **self._loss_options,
        )
        self._means.add(loss / counts["dp_size"], metrics, mask)
        if self.trainer.diagnostics is not None:
            self.trainer.diagnostics.see_values(vpreds, rows, self._loss_options)
        weighted: Tensor = config.vf_coef * loss
        return weighted


def before_and_after(values: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Cut ``(B, P + T)`` values at all positions into ``(B, T)`` before each completion token, ``(B,)`` after the last.

    A model that has read a token predicts what follows, so the value before a token stands one position to its left.
    """
    completion = batch["completion_mask"].bool()
    width = completion.shape[1]
    last = torch.where(completion, torch.arange(width, device=completion.device), 0).amax(-1, keepdim=True)
    after = values[:, -width:].gather(1, last).squeeze(1)
    return values[:, -width - 1 : -1], after
