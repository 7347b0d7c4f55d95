"""Inside a Ray worker, where verl's actor and critic run: the numbers of this process to the bit."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("verl")

import torch  # noqa: E402

from parity import verl_side  # noqa: E402
from rl_estimators import list_adv_est, list_policy_loss, list_value_loss  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """What a worker found: one session of Ray's for all."""
    file = tmp_path_factory.mktemp("ray") / "found.pt"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with tempfile.TemporaryDirectory(prefix="rle") as short:  # Ray's sockets allow 107 characters
        command = [sys.executable, str(HERE / "in_ray.py"), str(file), short]
        done = subprocess.run(
            command, env={**environment, "HOME": short}, capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(file, weights_only=True)


def test_it_was_another_process_that_verl_loaded_us_in(worker):
    assert worker["elsewhere"]
    assert worker["loaded"]


@pytest.mark.parametrize("name", list_adv_est())
def test_advantages_and_returns(worker, name):
    for found, wanted in zip(worker["advantages"][name], verl_side.advantages(name), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", [*list_policy_loss(), *list_value_loss()])
def test_losses_and_gradients(worker, name):
    kind = verl_side.policy_loss if name in list_policy_loss() else verl_side.value_loss
    loss, gradient = kind(name, "token-mean")
    assert worker["losses"][name][0] == loss
    assert torch.equal(worker["losses"][name][1], gradient)
