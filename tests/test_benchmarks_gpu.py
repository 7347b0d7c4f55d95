"""The benchmark for CUDA without a device: its checks can fail, its self-test passes, its picture is drawn."""

import importlib
import json
import math
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cuda():
    pytest.importorskip("verl")
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("kernels_gpu")
    sys.path[:] = before
    for name in ("kernels_gpu", "kernels"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def on_the_cpu(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class Event:
    """A CUDA event by the host's clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


@pytest.fixture
def stand_in(cuda, monkeypatch):
    """Torch's CUDA functions that the course on a device needs, on the CPU."""
    given = {
        "is_available": lambda: True,
        "Event": Event,
        "synchronize": lambda: None,
        "set_sync_debug_mode": lambda mode: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 130,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=4096),
    }
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(cuda, "SHAPES", ((4, 16), (6, 20)))
    monkeypatch.setattr(cuda, "SECONDS", 0.0)
    monkeypatch.setattr(cuda, "bandwidth", lambda: 1e12)


def test_the_course_on_a_device(cuda, stand_in, tmp_path, capsys, monkeypatch):
    """Everything but the device: each case is checked, timed on batches in turn, and drawn."""
    monkeypatch.setattr(sys, "argv", ["kernels_gpu.py", "--out", str(tmp_path)])
    assert cuda.main() == 0
    assert capsys.readouterr().out.endswith("all right, and nothing of ours made the host wait\n")
    results = json.loads((tmp_path / "kernels_gpu.json").read_text())
    assert [line["case"] for line in results["races"]] == 2 * [*cuda.CASES]
    for line in results["races"]:
        assert line["seconds"].keys() == {"verl", "torch", "copy"}
        assert all(seconds > 0 for seconds in line["seconds"].values())
        assert line["peak_bytes"] == {"verl": 30, "torch": 30}
    assert (tmp_path / "kernels_gpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_wait_is_seen_by_what_torch_says(cuda, stand_in):
    def call():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    (place,) = cuda.waits(call)
    assert place.startswith("test_benchmarks_gpu.py:")


pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]


def test_self_test(cuda, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kernels_gpu.py", "--out", str(tmp_path)])
    assert cuda.main() == 0
    out = capsys.readouterr().out
    assert out.startswith("CUDA is not used: a self-test on the CPU, small; nothing is timed\n")
    assert out.endswith("all right\n")
    results = json.loads((tmp_path / "kernels_gpu.json").read_text())
    checked = {line["case"] for line in results["checked"]}
    assert checked == {*cuda.CASES} - {*cuda.DRAWN}
    assert "races" not in results
    assert all(line["errors"]["torch"] <= cuda.TOLERANCE for line in results["checked"])
    assert [path.name for path in tmp_path.iterdir()] == ["kernels_gpu.json"]


@pytest.mark.parametrize(
    "spoil", [lambda x: x * 1.01, lambda x: x * math.nan], ids=["a hundredth off", "NaN"]
)
def test_wrong_numbers_are_found(cuda, monkeypatch, spoil):
    theirs, ours, size = cuda.CASES["gae"]

    def spoilt(batch):
        found = ours(batch)
        return found._replace(advantages=spoil(found.advantages))

    monkeypatch.setitem(cuda.CASES, "gae", (theirs, spoilt, size))
    assert not cuda.check("gae", 6, 40, torch.device("cpu"))["right"]
    assert cuda.check("remax", 6, 40, torch.device("cpu"))["right"]


def a_line(case, waits=(), **seconds):
    return {
        "case": case, "rows": 4, "length": 8, "bytes": 768, "waits": {"verl": ["x.py:1"], "torch": list(waits)},
        "seconds": {"verl": 1e-2, "torch": 1e-3, "copy": 5e-4, **seconds}, "peak_bytes": {},
    }  # fmt: skip


def test_what_makes_the_host_wait_is_a_problem_but_for_strings(cuda):
    lines = [a_line("gae"), a_line("remax", ["rows.py:7"]), a_line("grpo", ["masked.py:9"])]
    assert cuda.waiting(lines) == ["remax with torch made the host wait at rows.py:7"]


def test_a_line_of_the_table(cuda):
    assert cuda.shown(a_line("gae")).split() == [
        "4", "x", "8", "gae", "torch", "10.0x", "verl,", "50%", "of", "a", "copy,", "0", "waits",
    ]  # fmt: skip


def test_picture(cuda, tmp_path):
    lines = [a_line("gae", triton=2e-4), a_line("policy loss")]
    lines[0]["waits"]["triton"] = []
    cuda.plot({"machine": {"gpu": "some GPU"}, "races": lines}, tmp_path / "kernels_gpu.png")
    assert (tmp_path / "kernels_gpu.png").read_bytes().startswith(b"\x89PNG")


def test_inputs_go_where_they_are_asked_to(cuda):
    batch = cuda.placed(cuda.inputs(3, 5, "prefix"), torch.device("meta"), torch.float64)
    assert {name for name, x in batch.items() if isinstance(x, torch.Tensor)} == {*batch} - {"uids"}
    assert all(x.is_meta for name, x in batch.items() if name != "uids")
    assert (batch["rewards"].dtype, batch["mask"].dtype) == (torch.float64, torch.int64)
    assert batch["new"].requires_grad
    assert batch["new"].is_leaf
