"""A batch as tensors: what an estimator was given, saved to be looked at.

``.safetensors``, with names and texts as JSON under the key ``rl_estimators`` of its metadata; or ``.pt``, a dict of tensors
and texts, read without unpickling objects.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_estimators.compare import values
from rl_estimators.compare.limits import MOST_CELLS, MOST_TOKENS, check_size
from rl_estimators.compare.model import Rollouts
from rl_estimators.compare.schema import PLACEHOLDER
from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS, as_index, check
from rl_estimators.files.lines import Wording, json_object
from rl_estimators.hints import did_you_mean
from rl_estimators.masked import as_mask

__all__ = ["load", "save"]

_KEY = "rl_estimators"
_MOST_TENSORS = 1000
_NAMED = 20
_MOST_METADATA = 90 * 2**20  # safetensors refuses a header of more than 100 MB
_TEXTS = ("step", "prompts", "pieces", "index")
_FIELDS = [name for name, field in FIELDS.items() if field.dims]
_INSTALL = "needs safetensors: pip install 'rl-estimators[see]'"


def save(
    path: "str | Path",
    *,
    step: int | None = None,
    prompts: Sequence[str | None] | None = None,
    pieces: Sequence[Sequence[str]] | None = None,
    **inputs: Any,
) -> None:
    """Write a batch for ``rl-estimators compare``, whole or not at all.

    Args:
        path: Ends in ``.safetensors`` or ``.pt``.
        step: The training step.
        prompts: ``B`` texts.
        pieces: ``B`` lists of at most ``T`` texts, those of the response's tokens.
        **inputs: By the names of :data:`rl_estimators.fields.FIELDS`: ``token_level_rewards`` and ``response_mask``, and
            whatever else an estimator was given; ``index`` as a list, array or tensor.

    Raises:
        InputError: an input is missing, unknown or does not fit; the path ends otherwise; the texts are too long for a
            header of safetensors.

    Example:
        >>> save("step5.safetensors", step=5, token_level_rewards=rewards, response_mask=mask, index=uids, values=values)
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise InputError(f"{path}: a batch is saved as .safetensors or .pt")
    for name in inputs:
        if name not in _FIELDS:
            raise InputError(f"there is no input {name!r}.{did_you_mean(name, _FIELDS)}")
    check(str(path), inputs, ("token_level_rewards", "response_mask"))
    texts = {"step": step, "prompts": prompts and [*prompts], "pieces": pieces and [[*own] for own in pieces]}
    if "index" in inputs and not isinstance(inputs["index"], Tensor):
        texts["index"] = as_index(inputs.pop("index")).tolist()
    texts = {name: value for name, value in texts.items() if value is not None}
    _step(str(path), texts)
    _check_texts(str(path), texts, inputs["response_mask"].shape)
    tensors = {name: value.detach().cpu().contiguous() for name, value in inputs.items()}
    part = path.with_name(path.name + ".part")
    try:
        (_write_safetensors if path.suffix == ".safetensors" else _write_pt)(part, tensors, texts)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, source: str) -> Rollouts:
    """Read what :func:`save` wrote.

    Raises:
        InputError: it is damaged, lacks an input, holds objects, or its parts do not fit each other.
    """
    with path.open("rb") as file:
        head = file.read(9)
    # a header of safetensors may have a length of 0x80 and begins after its eight bytes
    pickled = head.startswith((b"PK\x03\x04", b"\x80")) and head[8:] != b"{"
    read = _read_pt if pickled or path.suffix == ".pt" else _read_safetensors
    tensors, texts = read(path, source)
    _check_plain(source, tensors)
    inputs: dict[str, Any] = {name: value for name, value in tensors.items() if name in _FIELDS}
    others = [name for name in tensors if name not in _FIELDS][:_NAMED]
    unread = [f"not read: {name}.{did_you_mean(name, _FIELDS)}" for name in others]
    if "index" in texts:
        inputs["index"] = _index(source, texts)
    check(source, inputs, ("token_level_rewards", "response_mask"))
    shape = inputs["response_mask"].shape
    step = _step(source, texts)
    check_size(source, step, *shape)
    _check_texts(source, texts, shape)
    notes = list(unread)
    if "index" not in inputs:
        named = all(prompt is not None for prompt in texts.get("prompts", [None]))
        inputs["index"] = texts["prompts"] if named else list(range(shape[0]))
        if not named:
            notes.append("without index and prompts each response is a group of its own")
    return Rollouts(
        source=source,
        step=step,
        prompts=texts.get("prompts", [None] * shape[0]),
        pieces=texts["pieces"] if "pieces" in texts else _placeholders(inputs["response_mask"]),
        exact=True,
        inputs=inputs,
        notes=notes,
        format="a batch of tensors",
    )


def _placeholders(mask: Tensor) -> list[list[str]]:
    ends = (as_mask(mask) * torch.arange(1, mask.shape[-1] + 1)).amax(-1) if mask.numel() else mask.sum(-1)
    return [[PLACEHOLDER] * int(end) for end in ends]


def _index(source: str, texts: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    index = texts["index"]
    if not isinstance(index, list) or not all(
        isinstance(name, (str, int)) and not isinstance(name, bool) for name in index
    ):
        raise InputError(f"{source}: index is no list of strings or whole numbers")
    return as_index(index)


def _step(source: str, texts: Mapping[str, Any]) -> int | None:
    try:
        return values.step_number(texts)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check_texts(source: str, texts: Mapping[str, Any], shape: Sequence[int]) -> None:
    """What stands beside the tensors fits them.

    Sizes come first: a list that stands in another a million times takes little room in a pickle, and long to look through.
    """
    prompts, pieces = texts.get("prompts"), texts.get("pieces")
    if prompts is not None and not isinstance(prompts, list):
        raise InputError(f"{source}: prompts is no list of texts")
    if pieces is not None and not (isinstance(pieces, list) and all(isinstance(own, list) for own in pieces)):
        raise InputError(f"{source}: pieces is no list of lists of texts")
    for name in ("prompts", "pieces"):
        if texts.get(name) is not None and len(texts[name]) != shape[0]:
            raise InputError(f"{source}: {name} has {len(texts[name])} entries for {shape[0]} responses")
    if pieces and max(map(len, pieces)) > shape[1]:
        raise InputError(f"{source}: pieces has {max(map(len, pieces))} texts for {shape[1]} tokens")
    if prompts and not _texts(prompts, optional=True):
        raise InputError(f"{source}: prompts is no list of texts")
    if pieces and not all(map(_texts, pieces)):
        raise InputError(f"{source}: pieces is no list of lists of texts")
    if len(shape) == 2 and shape[1] > MOST_TOKENS:
        raise InputError(f"{source}: {shape[1]:,} tokens in a response, more than {MOST_TOKENS:,}")


def _texts(value: list[Any], optional: bool = False) -> bool:
    kinds = (str, type(None)) if optional else (str,)
    return all(isinstance(entry, kinds) for entry in value)


def _write_safetensors(path: Path, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise InputError(f"{path.with_suffix('')}: writing it {_INSTALL}") from None
    metadata = json.dumps(texts)
    if len(metadata) > _MOST_METADATA:
        raise InputError(
            f"{path.with_suffix('')}: prompts and pieces take {len(metadata):,} bytes, more than a header of safetensors "
            "holds; save as .pt, or leave pieces out"
        )
    copies = {name: tensor.clone() for name, tensor in tensors.items()}  # two names may share memory
    save_file(copies, os.fspath(path), metadata={_KEY: metadata})


def _write_pt(path: Path, tensors: dict[str, Tensor], texts: dict[str, Any]) -> None:
    torch.save({**tensors, **texts}, path)


def _check_plain(source: str, tensors: Mapping[str, Tensor]) -> None:
    """A few bytes may claim to be a huge tensor: nothing is computed before its size is known."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(
                f"{source}: {name} is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
            )
        if tensor.numel() > MOST_CELLS:
            raise InputError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, more than {MOST_CELLS:,} numbers; save fewer "
                "responses in a file"
            )
        held = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > held:
            raise InputError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, more than the {held:,} bytes it has hold: it repeats "
                "some; save it as .contiguous()"
            )


def _read_pt(path: Path, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    _check_zip(path, source)
    try:
        with path.open("rb") as file:  # of a path, torch would look at the ending
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{source}: it holds objects that only unpickling restores, which may run any code: it is not read. Save its "
            "tensors with rl_estimators.compare.save"
        ) from error
    except Exception as error:  # in a file made by hand anything may fail, memory and recursion too
        raise InputError(f"{source}: no whole file of torch.save: {_first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(
            f"{source}: it holds a {type(found).__name__}, expected a dict of tensors by their names"
        )
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    texts = {name: value for name, value in found.items() if name in _TEXTS and name not in tensors}
    odd = [name for name in found if name not in tensors and name not in texts]
    if odd:
        raise InputError(f"{source}: {odd[0]} is a {type(found[odd[0]]).__name__}, expected a tensor")
    return tensors, {name: value for name, value in texts.items() if value is not None}


def _check_zip(path: Path, source: str) -> None:
    """torch.save writes an archive without compression; what is packed may be a thousand times as large."""
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{source}: no whole file of torch.save: it is cut short, or a pickle, which is not read"
        )
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise InputError(f"{source}: no file of torch.save: its parts are compressed")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise InputError(f"{source}: no file of torch.save: its parts lie upon each other")


def _read_safetensors(path: Path, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise InputError(f"{source}: reading it {_INSTALL}") from None
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise InputError(f"{source}: {len(names):,} tensors, more than {_MOST_TENSORS:,}")
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = (file.metadata() or {}).get(_KEY, "{}")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: no whole safetensors file: {_first_line(error)}") from error
    texts = json_object(metadata.encode(), Wording(), first=False)
    if isinstance(texts, str):
        raise InputError(f"{source}: the metadata {_KEY!r} is no JSON object: {texts}")
    return tensors, {name: value for name, value in texts.items() if name in _TEXTS and value is not None}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
