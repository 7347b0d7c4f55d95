"""The critic's optimizer and its learning-rate schedule."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import get_scheduler

from rl_estimators.errors import InputError

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["Updates"]


class Updates:
    """An optimizer on a critic's parameters: of the policy's kind (``optim``), with its settings and clipping.

    The learning rate has its own peak and the policy's schedule. accelerate does not know this optimizer: with its
    gradient scaler, one of the two would unscale the other's gradients.

    Args:
        trainer: Where the settings come from.
        module: What is updated: its parameters that require a gradient.

    Raises:
        InputError: none of them does.
    """

    def __init__(self, trainer: "EstimatorTrainer", module: nn.Module) -> None:
        args = trainer.args
        self._args = args
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise InputError(
                "value_model has no parameter that requires a gradient, so there is nothing to train; unfreeze its "
                "head at least"
            )
        decayed = set(trainer.get_decay_parameter_names(module))
        groups = [
            {"params": [p for n, p in named if n in decayed], "weight_decay": args.weight_decay},
            {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
        ]
        self.parameters = [p for _, p in named]
        kind, options = trainer.get_optimizer_cls_and_kwargs(args, module)
        self.optimizer = kind(
            [group for group in groups if group["params"]], **{**options, "lr": args.critic_learning_rate}
        )
        self.scheduler: Any = None

    def create_scheduler(self, num_training_steps: int) -> None:
        """The policy's schedule, from the beginning."""
        self.scheduler = get_scheduler(
            self._args.lr_scheduler_type,
            optimizer=self.optimizer,
            num_warmup_steps=self._args.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=self._args.lr_scheduler_kwargs,
        )

    def step(self) -> dict[str, float]:
        """Clip, step, and clear the gradients; returns the gradient's norm before clipping and the learning rate.

        A gradient that is not finite is cleared without a step, which ``update_skipped`` counts.
        """
        limit = self._args.max_grad_norm or float("inf")  # 0 is the Trainer's word for no clipping
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        rate = self.optimizer.param_groups[0]["lr"]
        skipped = not math.isfinite(norm)
        if not skipped:
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": float(rate), "update_skipped": float(skipped)}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, by file name."""
        state = {"optimizer.pt": self.optimizer.state_dict()}
        if self.scheduler is not None:  # there is none before training
            state["scheduler.pt"] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer.pt"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler.pt"])
