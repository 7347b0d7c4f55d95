"""Two processes train one critic: the same on both, and what one process makes of the same data."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import critic_ranks  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(critic_ranks.__file__)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(number)]
    for start in ([], two):
        done = subprocess.run(
            [sys.executable, *start, str(script), str(tiny), str(folder)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / name, weights_only=False) for name in ("0_of_1.pt", "0_of_2.pt", "1_of_2.pt")]


@pytest.mark.parametrize("case", critic_ranks.CASES)
def test_two_processes_learn_what_one_does(runs, case):
    one, first, second = (run[case] for run in runs)
    assert runs[1]["world"] == 2
    for name, tensor in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], tensor, rtol=0, atol=1e-6)
    assert (
        one["weights"]["weight" if case == "shared" else "v_head.weight"].abs().max() > 1e-3
    )  # it began at 0
    assert first["metrics"] == second["metrics"]
    for name, numbers in one["metrics"].items():
        assert first["metrics"][name] == pytest.approx(numbers, rel=1e-4, abs=1e-6), name
    assert len(one["metrics"]["critic/grad_norm"]) == 3


def test_the_value_gradient_reaches_the_policy_of_both(runs):
    one, first, second = (run["shared"]["policy"] for run in runs)
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["separate", "shared"])
def test_a_run_keeps_one_critic_and_loads_it(runs, case):
    found = runs[1]["trained"][case]
    for name, (whole, resumed) in found["weights"].items():
        assert torch.equal(whole[0], whole[1]), name
        assert torch.equal(whole, resumed), name
    assert found["values"][-1] != 0


@pytest.mark.parametrize("case", ["separate", "shared"])
def test_each_process_goes_on_with_its_own_completions(runs, case):
    first, second = (run["trained"][case] for run in runs[1:])
    for found in (first, second):
        before, after = found["batches"]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert found["steps"] == (6, 6)
    assert not all(torch.equal(*pair) for pair in zip(first["batches"][1], second["batches"][1], strict=True))
