"""An optimizer step is taken only if its gradient is finite.

One NaN among the log-probabilities makes the loss NaN, with it each gradient, and one step later each weight of the
policy. verl leaves such a step out; transformers' Trainer takes it, and leaves the NaN out of the logged loss.
"""

import warnings
from typing import TYPE_CHECKING

import torch
from accelerate.utils import DistributedType
from torch import nn

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["drop_unless_finite", "warn"]

METRIC = "rl_estimators/update_skipped"


def drop_unless_finite(trainer: "EstimatorTrainer", model: nn.Module) -> None:
    """Clear the policy's gradients if one is not finite in any process, and log ``rl_estimators/update_skipped``.

    Without gradients an optimizer moves neither weights nor momentum. DeepSpeed keeps its gradients to itself, and under
    fp16 the gradient scaler leaves such steps out: there nothing is done. Every process must call.
    """
    accelerator = trainer.accelerator
    theirs = accelerator.scaler is not None or accelerator.distributed_type == DistributedType.DEEPSPEED
    if theirs or not accelerator.sync_gradients:
        return
    skipped = float(accelerator.reduce(_not_finite(model), reduction="sum")) > 0
    trainer._metrics["train"][METRIC].append(float(skipped))
    if skipped:
        model.zero_grad(set_to_none=True)
        warn(trainer, "policy", METRIC)


def warn(trainer: "EstimatorTrainer", whose: str, metric: str) -> None:
    """Say that the step about to be taken is left out."""
    warnings.warn(
        f"step {trainer.state.global_step + 1}: the {whose}'s gradient is not finite, so its weights stay as they are; "
        f"{metric} counts such steps. Look for NaN or infinity in the log-probabilities, rewards and values of this batch",
        RuntimeWarning,
        stacklevel=2,
    )


def _not_finite(model: nn.Module) -> torch.Tensor:
    """0-dim: how many of this process's gradients hold a number that is not finite."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # FSDP2 shards gradients: the part that lies here, which may be empty
    local = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
    local = [g for g in local if g.numel()]
    if not local:
        return torch.zeros((), device=next(model.parameters()).device)
    # the largest number of each, as a sum of squares would overflow for large finite ones
    largest = torch._foreach_norm(local, float("inf"))
    return (~torch.stack([x.float().to(local[0].device) for x in largest]).isfinite()).sum().float()
