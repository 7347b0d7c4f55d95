"""Real runs of ``verl.trainer.main_ppo`` for tests: the smoke task, with a record of every advantage step."""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]


def smoke():
    """The module ``examples/digit_sort/smoke.py``."""
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    return importlib.import_module("digit_sort.smoke")


def recorded(monkeypatch, folder):
    """Have the processes of the next run record into ``folder``; returns a function that reads the records."""
    folder.mkdir()
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "recorder")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("RLE_TEST_RECORDS", str(folder))
    return lambda: [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


def arrays(record, *names):
    """Columns of a record as float64 numpy arrays."""
    return [record[name].double().numpy() for name in names]


def uids(record):
    return np.array(record["uid"], dtype=object)
