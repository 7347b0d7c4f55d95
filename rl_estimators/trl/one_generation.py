"""``num_generations=1``, which TRL refuses because its own estimators compare a prompt's completions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from trl import GRPOConfig

from rl_estimators.errors import InputError

__all__ = ["accepting_one_generation"]


@contextmanager
def accepting_one_generation(config: GRPOConfig) -> Iterator[None]:
    """Entered around TRL's checks: they see a divisor of the batch in place of 1, which is put back afterwards.

    Only TRL's check of the sizes reads the number there. A batch of a single completion cannot be shown as a group of
    two or more, and is refused.

    Raises:
        InputError: the batch is a single completion.
    """
    if config.num_generations != 1:
        yield
        return
    for_eval = config.num_generations_eval
    config.num_generations = _divisor(config)
    config.num_generations_eval = for_eval or 1
    try:
        yield
    finally:
        config.num_generations, config.num_generations_eval = 1, for_eval


def _divisor(config: GRPOConfig) -> int:
    """A number above 1 that divides the completions between two generations."""
    steps = config.steps_per_generation or config.gradient_accumulation_steps
    batch: int = config.generation_batch_size or config.per_device_train_batch_size * steps
    # world_size is not known before TRL's own code has run; any of the processes' batches divides the whole
    size = batch if batch > 1 else int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        raise InputError(
            "num_generations=1 with a batch of a single completion: TRL wants two or more between two generations; "
            "raise per_device_train_batch_size or gradient_accumulation_steps"
        )
    return size
