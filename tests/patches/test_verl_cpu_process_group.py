"""verl's default process group on the CPU platform, in a process of its own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.verl

INITIALIZE = """
import sys
import verl
from verl.utils.distributed import initialize_global_process_group_ray as initialize
import torch

initialize(timeout_second=250)
total = torch.ones(2)
torch.distributed.all_reduce(total)
initialize(backend="nonsense")  # as upstream's: without effect once there is a group
print(torch.distributed.get_backend(), total.tolist())
"""


def run(tmp_path, **environment):
    known = {
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
        "DIST_INIT_METHOD": f"file://{tmp_path}/rendezvous",
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INITIALIZE],
        capture_output=True,
        text=True,
        env={**os.environ, **known, **environment},
        timeout=300,
    )


def test_the_default_group_is_gloo(tmp_path):
    done = run(tmp_path)
    assert done.stdout.splitlines()[-1:] == ["cpu:gloo [1.0, 1.0]"], done.stderr


def test_without_the_patch_torch_refuses_the_default(tmp_path):
    done = run(tmp_path, RL_ESTIMATORS_DISABLE_PATCHES="verl_cpu_process_group")
    assert "cpu:gloo,cpu:gloo" in done.stderr
