"""SIGKILL in the middle of a step. While a checkpoint is written: tests/trl/test_critic_checkpoint.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import test_critic_checkpoint as checkpoints  # noqa: E402

from faults import killed_in_step  # noqa: E402


def test_a_run_killed_in_a_step_ends_as_if_it_had_not_been(tiny, tmp_path):
    """Resumed by `resume_from_checkpoint=True`: weights, optimizers, schedules and log to the bit (on a CPU)."""
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(Path(killed_in_step.__file__)), str(tiny), str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-3"}
    whole, resumed = (
        checkpoints.make(tmp_path / name, tiny, **killed_in_step.SETTINGS) for name in ("whole", "run")
    )
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    checkpoints.equal(checkpoints.everything(resumed), checkpoints.everything(whole))
    assert resumed.state.global_step == 8
