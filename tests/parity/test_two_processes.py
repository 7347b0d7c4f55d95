"""Two processes over gloo, six rows each, one prompt's responses in both: the same numbers as one process has in verl.

verl computes advantages in one process, its trainer's; its losses run on each with half of the rows.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.verl, pytest.mark.trl, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("verl")
pytest.importorskip("trl")

import torch  # noqa: E402

from parity import ranks, recorded, verl_side  # noqa: E402
from rl_estimators import list_adv_est, list_policy_loss, list_value_loss  # noqa: E402

HERE = Path(__file__).parent
TESTS = HERE.parent
SHARE = recorded.ROWS // 2
CASES = [(name, None) for name in list_adv_est()] + [(name, 0.1) for name in ranks.CHARGED]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def two(model, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    paths = [*map(str, (TESTS, TESTS / "trl", TESTS / "verl")), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [sys.executable, *launch, str(HERE / "ranks.py"), str(model), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_there_were_two(two):
    assert [found["world"] for found in two] == [2, 2]


@pytest.mark.parametrize(("name", "kl"), CASES)
def test_advantages_and_returns(two, name, kl):
    """To the bit, but for the KL divergence in the reward: see `test_advantages.test_kl_in_the_reward`."""
    wanted = verl_side.advantages(name, kl=kl)
    for rank, found in enumerate(two):
        for part, whole in zip(found["advantages"][name, kl], wanted, strict=True):
            rows = whole[rank * SHARE : (rank + 1) * SHARE]
            assert (rows[:, part.shape[1] :] == 0).all()
            torch.testing.assert_close(
                part,
                rows[:, : part.shape[1]],
                rtol=0,
                atol=0 if kl is None else 1e-6 * float(whole.abs().max()),
            )


def test_the_processes_were_of_unequal_width(two):
    assert [found["advantages"]["gae", None][0].shape[1] for found in two] == [7, 6]


@pytest.mark.parametrize("framework", ["verl", "trl"])
@pytest.mark.parametrize("name", [*list_policy_loss(), *list_value_loss()])
def test_losses_and_gradients(two, framework, name):
    """Averaged over the processes they are the whole batch's; 1e-6 for sums of 44 numbers in another order.

    The losses that choose tokens among those at hand choose others on half of the rows: there the frameworks agree.
    """
    for found in two:
        mine = found["losses"][framework, name]
        if name in recorded.PER_BATCH:
            wanted = found["losses"]["verl", name]
        else:
            kind = verl_side.policy_loss if name in list_policy_loss() else verl_side.value_loss
            loss, gradient = kind(name, ranks.MODE)
            wanted = torch.cat([torch.tensor([loss]), gradient.flatten()])
        scale = float(wanted[1:].abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(mine[1:], wanted[1:], rtol=0, atol=1e-6 * scale)
        torch.testing.assert_close(mine[0], wanted[0], rtol=0, atol=1e-6 * scale * recorded.TOKENS)
