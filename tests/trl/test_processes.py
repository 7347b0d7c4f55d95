"""Two processes compute what one does: equal to TRL's run, and the same advantages whichever rows each holds."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import ranks  # noqa: E402
import torch  # noqa: E402

from rl_estimators import list_adv_est  # noqa: E402

HERE = Path(__file__).parent


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_on_two(script, *arguments):
    """Run a script on two processes over gloo."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, *launch, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    run_on_two(HERE / "ranks.py", tiny, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_there_were_two(two):
    assert [found["world"] for found in two] == [2, 2]


def test_one_completion_a_process(two):
    assert [found["one_generation"] for found in two] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("case", ranks.EXACT)
def test_equal_to_trl_on_two_processes(two, case):
    """`ranks.exact` has compared them, on each process; here is that they trained."""
    for found in two:
        assert len(found["exact"][case]) == 6
        assert max(found["exact"][case]) > 0


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    return ranks.everything(tiny, tmp_path_factory.mktemp("one"), 0, 1)


@pytest.mark.parametrize("charged", [False, True], ids=["", "kl_in_reward"])
@pytest.mark.parametrize("name", list_adv_est())
def test_two_processes_equal_one(one, two, name, charged):
    whole = dict(one[name, charged])
    logged = whole.pop("logged")
    assert len(logged) > 10
    assert whole["advantages"].abs().max() > 0
    for found in two:
        assert found["advantages"][name, charged]["logged"] == pytest.approx(logged, rel=1e-6, abs=1e-9)
    for key, tensor in whole.items():
        for rank, found in enumerate(two):
            part = found["advantages"][name, charged][key]
            wanted = tensor[rank * 3 : rank * 3 + 3]
            if wanted.ndim == 2:
                assert (wanted[:, part.shape[1] :] == 0).all()
                wanted = wanted[:, : part.shape[1]]
            assert torch.equal(part, wanted)


def test_two_processes_log_the_updates_of_one(two, tiny, tmp_path):
    whole = ranks.updates(tiny, tmp_path, 0, 1)
    assert whole["rl_estimators/ratio_max"] > 1.1
    for found in two:
        assert found["updates"] == pytest.approx(whole, rel=1e-5)


@pytest.fixture(scope="module")
def losses(tiny, tmp_path_factory):
    return ranks.losses(tiny, tmp_path_factory.mktemp("losses"), 0, 1)


@pytest.mark.parametrize("case", ranks.LOSSES, ids="-".join)
def test_two_processes_have_the_gradient_of_one(losses, two, case):
    """And the loss, the last number; tokens and completions are shared out unequally."""
    for found in two:
        torch.testing.assert_close(found["losses"][case], losses[case], rtol=1e-4, atol=1e-6)
    assert losses[case].abs().max() > 1e-2
