"""The generation batch's place in a checkpoint: ``checkpoint-N/generation_batch_R.pt``, one of each process.

TRL learns from a generation batch in ``steps_per_generation * num_iterations`` micro-batches, and saves neither the
batch nor the place in it. A run resumed in between would draw new completions and go on with them out of step with its
data. With this file it goes on where it was.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from rl_estimators.errors import InputError

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["load", "save"]


def save(trainer: "EstimatorTrainer", folder: Path) -> None:
    """Write this process's place in the generation batch, and the batch unless it is used up."""
    between = trainer._step % _length(trainer) != 0
    state = {
        "settings": _settings(trainer),
        "step": trainer._step,
        "inputs": trainer._buffered_inputs if between else None,
    }
    folder.mkdir(parents=True, exist_ok=True)  # the first process may be late
    torch.save(state, _file(trainer, folder))


def load(trainer: "EstimatorTrainer", folder: Path) -> None:
    """Go on in the generation batch that :func:`save` wrote; warn if that cannot be, and what follows from it.

    Raises:
        InputError: the file is damaged.
    """
    state = _read(_file(trainer, folder))
    obstacle = _obstacle(trainer, state, folder)
    found = torch.tensor(float(obstacle is None), device=trainer.accelerator.device)
    everywhere = (
        trainer.accelerator.reduce(found, reduction="sum").item() == trainer.accelerator.num_processes
    )
    trainer._step, trainer._buffered_inputs = 0, None
    if state is not None and everywhere:  # processes generate together, or none does
        trainer._step = state["step"]
        trainer._buffered_inputs = send_to_device(state["inputs"], trainer.accelerator.device)
        return
    micro_batches = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    lost = micro_batches % _length(trainer) != 0 if state is None else state["inputs"] is not None
    if lost:
        warnings.warn(
            f"{folder}: {obstacle or 'another process cannot go on with its generation batch'}; the run goes on with "
            "new completions, and not as it would have uninterrupted",
            stacklevel=2,
        )


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file} cannot be loaded ({type(error).__name__}): it is damaged; resume from another checkpoint, or delete "
            "it to go on with new completions"
        ) from error
    return state


def _obstacle(trainer: "EstimatorTrainer", state: dict[str, Any] | None, folder: Path) -> str | None:
    """Why a saved batch does not serve this run; None if it does."""
    if state is None:
        return f"it has no {_file(trainer, folder).name}"
    before, now = state["settings"], _settings(trainer)
    changed = [
        f"{name} was {before.get(name)} and is {now[name]}" for name in now if before.get(name) != now[name]
    ]
    return ", ".join(changed) or None


def _settings(trainer: "EstimatorTrainer") -> dict[str, Any]:
    """What a batch was made for: another shape, or other keys, would not do."""
    args = trainer.args
    return {
        "the number of processes": trainer.accelerator.num_processes,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "steps_per_generation": args.steps_per_generation,
        "num_iterations": args.num_iterations,
        "adv_estimator": trainer.estimator.name,
        "policy_loss": args.policy_loss,
    }


def _length(trainer: "EstimatorTrainer") -> int:
    """Micro-batches between two generations."""
    length: int = trainer.args.steps_per_generation * trainer.num_iterations
    return length


def _file(trainer: "EstimatorTrainer", folder: Path) -> Path:
    return folder / f"generation_batch_{trainer.accelerator.process_index}.pt"
