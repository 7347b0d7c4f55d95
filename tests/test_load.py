"""The load test in small, and that it would notice a leak."""

import importlib.util
import mmap
import sys
import threading
from pathlib import Path

import pytest

import rl_estimators

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def load():
    spec = importlib.util.spec_from_file_location("benchmarks_load", ROOT / "benchmarks" / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_small(load, capsys):
    number = len(load.BACKENDS) * len(rl_estimators.list_adv_est())  # each estimator once on each backend
    small = ["--count", str(number), "--rows", "16", "--tokens", "64", "--threads", "4"]
    assert load.main(small) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 11
    assert printed[-1] == "memory and threads flat; the same from 4 threads at once as from one"


def test_a_leak_is_noticed(load, monkeypatch):
    """Of memory, a MiB at each call; and of threads."""
    kept, over, real = [], threading.Event(), rl_estimators.estimate

    def leaking(*args, **more):
        kept.append(mmap.mmap(-1, 2**20))  # never out of what the process has already
        kept[-1].write(bytes([1]) * 2**20)
        threading.Thread(target=over.wait, daemon=True).start()
        return real(*args, **more)

    monkeypatch.setattr(rl_estimators, "estimate", leaking)
    try:
        looks = [*load.consecutive(8, 16, 60, [10, 60])]
    finally:
        over.set()
    memory, threads = load.grown(looks)
    assert memory.startswith("memory grew by ")
    assert threads == "50 more threads"


def test_results_that_depend_on_the_thread_are_noticed(load, monkeypatch):
    real = rl_estimators.estimate

    def mixed_up(name, **inputs):
        found = real(name, **inputs)
        shift = name == "gae" and threading.current_thread() is not threading.main_thread()
        return found._replace(returns=found.returns + 1.0) if shift else found

    monkeypatch.setattr(rl_estimators, "estimate", mixed_up)
    assert load.at_once(8, 16, 2) == [f"gae ({backend})" for backend in load.BACKENDS]
