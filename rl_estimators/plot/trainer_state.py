"""transformers' ``trainer_state.json``, which TRL leaves in every checkpoint.

``{"log_history": [{"step": 1, "reward": 0.5}, ...], ...}``
"""

import json
from pathlib import Path

from rl_estimators.files.problems import Problems
from rl_estimators.plot.runs import Points, as_step

__all__ = ["LARGEST_FILE", "is_trainer_state", "read"]

LARGEST_FILE = 2**28  # bytes: some hundred thousand entries


def is_trainer_state(head: bytes) -> bool:
    """Whether a file begins as transformers writes it: its keys stand in alphabetical order."""
    return head.lstrip().startswith(b"{") and b'"log_history"' in head


def read(path: Path, points: Points, problems: Problems) -> None:
    """Add a state's numbers to ``points``; of a file that cannot be read there are none.

    Raises:
        InputError: the file or an entry cannot be read and ``problems`` is strict.
    """
    if path.stat().st_size > LARGEST_FILE:
        problems.skip("the file", f"larger than {LARGEST_FILE} bytes", path)
        return
    try:
        state = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        problems.skip("the file", f"no JSON ({error})", path)
        return
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        problems.skip("the file", "its log_history is no list", path)
        return
    for number, entry in enumerate(history, 1):
        step = as_step(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            problems.skip(f"entry {number} of log_history", "it has no step", path)
            continue
        for name, value in entry.items():
            if name != "step":
                points.add(step, name, value)
