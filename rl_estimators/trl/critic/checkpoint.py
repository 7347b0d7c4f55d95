"""The critic's place in a checkpoint of TRL's: ``checkpoint-N/critic/``.

``model.safetensors``, with ``config.json`` where the model has one, ``optimizer.pt`` and ``scheduler.pt``.

It is written before the rest of the checkpoint, under another name that is changed when all of it is there. The
Trainer writes ``trainer_state.json`` last and only then deletes older checkpoints. So a checkpoint with that file is
whole, critic included, and one without is what a killed process has left: it is recognised and refused, and the one
before it is still there.

Resuming gives the uninterrupted run to the bit (on a CPU), also in the middle of a generation batch, which
:mod:`rl_estimators.trl.rollouts` saves.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rl_estimators.errors import CheckpointError, InputError

__all__ = ["FOLDER", "begin", "check", "export", "read", "read_weights", "write"]

FOLDER = "critic"
WEIGHTS, STATES = "model.safetensors", ("optimizer.pt", "scheduler.pt")


def begin(checkpoint: Path) -> None:
    """Start to write a checkpoint: what stands there from an earlier run no longer counts as whole."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)


def write(folder: Path, module: nn.Module, states: dict[str, Any]) -> None:
    """Write a critic into ``folder``, all of it or nothing.

    Args:
        folder: Its place; what is there is replaced.
        module: Its weights, and its ``config`` if it has one.
        states: By file name what else is saved.

    Raises:
        CheckpointError: it cannot be written; what is in ``folder`` is what was there.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with _writing(folder):
        unfinished.mkdir(parents=True)
        _export(unfinished, module)
        for name, state in states.items():
            torch.save(state, unfinished / name)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.replace(folder)


def export(folder: Path, module: nn.Module) -> None:
    """Write the weights, and the ``config`` if there is one, into ``folder``, beside what else is there.

    Raises:
        CheckpointError: they cannot be written; the weights in ``folder`` are those that were there.
    """
    with _writing(folder):
        _export(folder, module)


def check(checkpoint: Path) -> None:
    """Refuse to resume from a checkpoint that is not whole, before anything of it is loaded.

    Raises:
        InputError: what it lacks, and from where to resume instead.
    """
    if not checkpoint.is_dir():
        return  # the Trainer says so
    lacks = _lacks(checkpoint)
    if lacks is not None:
        beside = checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        whole = max((path for path in beside if _lacks(path) is None), key=_number, default=None)
        instead = (
            f"resume from {whole}"
            if whole is not None
            else f"no other checkpoint beside it is whole: start anew, with model={str(checkpoint)!r} if its policy is "
            "to be kept and critic_warmup_steps for a new critic"
        )
        raise InputError(f"{checkpoint} cannot be resumed from: {lacks}; {instead}")


def read(folder: Path, module: nn.Module, load_states: Callable[[dict[str, Any]], None]) -> None:
    """Load what :func:`write` wrote.

    Raises:
        InputError: a file is missing, cannot be read, or does not fit.
    """
    read_weights(folder, module)
    states = {}
    for name in STATES:
        with _naming(folder / name):
            states[name] = torch.load(folder / name, map_location="cpu", weights_only=True)
    with _naming(folder / STATES[0]):
        load_states(states)


def read_weights(folder: Path, module: nn.Module) -> None:
    """Load the weights that :func:`write` or :func:`export` wrote.

    Raises:
        InputError: the file is missing, cannot be read, or does not fit.
    """
    with _naming(folder / WEIGHTS):
        load_model(module, folder / WEIGHTS)


def _export(folder: Path, module: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # a model that was loaded from here may still read the old file
    unfinished = folder / f"{WEIGHTS}.unfinished"
    save_model(module, str(unfinished))
    unfinished.replace(folder / WEIGHTS)
    config: Any = getattr(module, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what could not be written; on a full disk torch throws no more than "iostream error"."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be written ({type(error).__name__}: {error}): the disk may be full; make room, and resume "
            "from the last whole checkpoint"
        ) from error


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Say which file could not be loaded; what is thrown depends on how it is damaged."""
    if not file.is_file():
        raise InputError(f"the checkpoint has no {file}; resume from another one")
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{file} cannot be loaded ({reason}): it is damaged, or of a run with another critic, "
            "critic_model_name_or_path or value_model; resume from another checkpoint, or with that run's settings"
        ) from error


def _lacks(checkpoint: Path) -> str | None:
    """What keeps the critic from going on from ``checkpoint``; None if nothing does."""
    if not (checkpoint / TRAINER_STATE_NAME).is_file():
        return f"it has no {TRAINER_STATE_NAME}, so the run was stopped while it wrote it"
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        return f"it has no {FOLDER} folder, so it is of a run without a critic"
    missing = [name for name in (WEIGHTS, *STATES) if not (folder / name).is_file()]
    if set(missing) == set(STATES):
        return f"{folder} has weights but no optimizer, as save_only_model=True leaves it"
    return f"{folder} has no {' and no '.join(missing)}" if missing else None


def _number(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(digits) if digits.isdigit() else -1
