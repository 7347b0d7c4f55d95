"""How many tokens and completions an optimizer step's losses are averaged over."""

from typing import TYPE_CHECKING, Any

from rl_estimators.trl import upstream

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["ROWS", "add_rows", "per_step"]

ROWS = "num_rows_in_batch"  # in TRL's batch, beside its num_items_in_batch: completions with a valid token


def add_rows(trainer: "EstimatorTrainer", batch: dict[str, Any]) -> None:
    """Count the completions of all processes that have a valid token, beside the tokens that TRL has counted."""
    written = upstream.response_mask(batch).any(-1).sum()
    batch[ROWS] = trainer.accelerator.gather(written).sum()


def per_step(trainer: "EstimatorTrainer", batch: dict[str, Any], mode: str) -> dict[str, Any]:
    """Tokens and completions of one optimizer step, all processes together, as the losses' ``global_batch_info``.

    TRL's way of counting for its ``dapo`` loss: the generation batch's tokens, scaled to one step. So the sum over
    micro-batches and processes is the batch's loss, whatever their sizes.
    """
    share = 1.0
    if mode == "train":
        share = trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation
    return {
        "dp_size": trainer.accelerator.num_processes,  # gradients are averaged over processes
        "batch_num_tokens": batch["num_items_in_batch"] * share,
        "global_batch_size": batch[ROWS] * share,
        "loss_scale_factor": trainer.max_completion_length,
    }
