"""Objects that do something when they are unpickled, and whether they did."""

import io
import os
import pickle
from pathlib import Path

import torch


class Planted:
    """Makes the folder ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def poisons(marker: Path) -> dict[str, bytes]:
    """Files that run code when they are unpickled, by how they were written."""
    packed = io.BytesIO()
    torch.save({"state": {}, "inputs": Planted(marker)}, packed)
    legacy = io.BytesIO()
    torch.save({"state": {}, "inputs": Planted(marker)}, legacy, _use_new_zipfile_serialization=False)
    return {
        "torch.save": packed.getvalue(),
        "torch.save before 1.6": legacy.getvalue(),
        "pickle": pickle.dumps({"state": Planted(marker)}),
    }


def sets_off(how: str, marker: Path) -> bool:
    """Whether such a file would have done it, read without care; the marker is removed again."""
    content = io.BytesIO(poisons(marker)[how])
    if how == "pickle":
        pickle.load(content)
    else:
        torch.load(content, weights_only=False)
    if marker.exists():
        marker.rmdir()
        return True
    return False
