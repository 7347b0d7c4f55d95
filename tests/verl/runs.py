"""Real runs of ``verl.trainer.main_ppo`` for tests: the smoke task, with a record of every advantage step."""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
WEIGHTS = [1.0, 3.0]  # of the two components of a reward, see components_reward.py


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


def returning_components(monkeypatch):
    """Overrides for a reward function that returns the two components of its score; they are recorded, too."""
    monkeypatch.setenv("RLE_TEST_COLUMNS", "places,length")
    path = Path(__file__).with_name("components_reward.py")
    keys = ["+algorithm.gdpo_reward_keys=[places,length]", f"+algorithm.gdpo_reward_weights={WEIGHTS}"]
    return [f"reward.custom_reward_function.path='{path}'", *keys]


def components(record):
    """What the reference of gdpo takes, after a check that row for row the two make up the score that verl fetched itself."""
    places, length, scores = arrays(record, "places", "length", "token_level_scores")
    np.testing.assert_allclose(scores.sum(axis=1), places * (1 + length) / 2, atol=1e-6)
    return {"reward_components": np.stack([places, length], axis=1), "weights": WEIGHTS}
