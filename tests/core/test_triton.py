"""Triton's kernels without a GPU: in triton's interpreter, compiled for GPUs, and counted as they are launched."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

import rl_estimators
from rl_estimators import backends

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="triton is not installed, or set to interpret",
)


# ---- what they compute


def why_not_interpreted():
    """Why triton cannot interpret its kernels here; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if Version(version("triton")) < Version("3.7") and Version(version("numpy")) >= Version("2.4"):
        return "the interpreter of triton before 3.7 wants numpy before 2.4"
    return ""


@pytest.mark.skipif(bool(why_not_interpreted()), reason=why_not_interpreted())
@pytest.mark.parametrize(
    ("name", "least", "chosen"),
    [
        ("test_triton_interpreted.py", 25, ""),
        # what a batch may hold; long rows take minutes, and one of each kind of GAE is enough beside the file above
        (
            "test_backends.py",
            45,
            "triton and not (tiles or threads or 32768) and (not gae_is or (nan and dtype0 and 0.99))",
        ),
    ],
    ids=["the-reference", "what-a-batch-may-hold"],
)
def test_in_the_interpreter(name, least, chosen):
    """In a process of its own: whether triton interprets is settled when it is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"tests/core/{name}",
        "-k",
        chosen,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= least, done.stdout


def test_maps_in_a_row_are_one_map():
    """The interpreter scans one token after the other; a GPU puts the maps together in any order that keeps their own."""
    from rl_estimators.backends.triton_scan import _after

    first, second, third = (0.5, 3.0), (1.0, 0.0), (0.25, -2.0)  # the one in the middle is a masked token's
    after = _after.fn
    assert after(*after(*first, *second), *third) == after(*first, *after(*second, *third)) == (0.125, -1.25)
    assert after(*first, *second) == after(*second, *first) == first


# ---- what is launched: on "meta" nothing can be, and is written down instead


class Operations(TorchDispatchMode):
    """Names of torch's operations that would be launched on a device: all but views and memory."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        views = any(x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns)
        if not views and not name.startswith(("empty", "_unsafe_view", "detach")):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch):
    """What is launched while a test runs, in order."""
    from rl_estimators.backends import triton_rows

    with Operations() as operations:
        monkeypatch.setattr(
            triton_rows, "_launch", lambda kernel, *given, **options: operations.seen.append(kernel.__name__)
        )
        monkeypatch.setattr(backends, "backend_for", lambda x: triton_rows)
        yield operations.seen


def on_meta(dtype=torch.float32, mask=torch.int64):
    shape = (16, 2048)
    return {
        "token_level_rewards": torch.empty(shape, dtype=dtype, device="meta"),
        "values": torch.empty(shape, dtype=dtype, device="meta"),
        "response_mask": torch.empty(shape, dtype=mask, device="meta"),
        "reward_baselines": torch.empty(16, device="meta"),
    }


@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.99, "whitening": {"weighting": "sequence", "eps_in": "std"}}]
)
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gae", ["gae_kernel", "pool_kernel", "standardise_kernel"]),
        ("reinforce_pp", ["returns_kernel", "pool_kernel", "standardise_kernel"]),
        ("remax", ["returns_kernel"]),
    ],
)
def test_few_launches_and_nothing_the_host_waits_for(launched, name, wanted, options):
    if name == "remax":
        options = {}
    rl_estimators.estimate(name, **on_meta(), **options)
    assert launched == wanted


def test_launches_are_seen(launched):
    """The check above can fail."""
    (on_meta()["values"] + 1)[0].mul_(2).unbind()
    assert launched == ["add", "mul_"]


# ---- what they compile to


COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rl_estimators.backends import triton_rows as rows

NAMES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.uint8: "*u8"}

def launch(kernel, grid, *given, **constants):
    "Compile in place of launching, for the types that are given."
    types, fixed = {}, dict(constants)
    for name, x in zip(kernel.arg_names, [*given, *constants.values()], strict=True):
        if isinstance(x, torch.Tensor):
            types[name] = NAMES[x.dtype]
        elif name in constants or x is None:
            types[name], fixed[name] = "constexpr", x
        else:
            types[name] = "fp32" if isinstance(x, float) else "i32"
    for capability in (80, 90):
        done = triton.compile(ASTSource(kernel, types, fixed), target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in done.asm["ptx"]
        assert len(done.asm["cubin"]) > 1000
        print(kernel.__name__, capability)

rows._launch = launch
number = torch.empty(4, device="meta")
for dtype, kind, length in ((torch.float32, torch.int64, 8192), (torch.bfloat16, torch.bool, 100)):
    r, v, mask = (torch.empty(4, length, dtype=x, device="meta") for x in (dtype, dtype, kind))
    scan = rows.gae(r, v, mask, number if dtype == torch.float32 else None, 0.99, 0.95)
    x = scan.advantages
    rows.returns(r, mask, 0.99)
    rows.returns(r, mask, number, number)
    found = rows.pooled(rows.moments(x, mask), dtype == torch.float32, 1.0, 1e-8, "variance")
    rows.pooled(rows.scores(r, mask), False, 0.0, 1e-4, "std")
    rows.standardise(x, mask, scan.rows, *found, x)
    rows.spread(number, mask)
    rows.spread(number.double(), mask, scan.rows)
    rows.strays(r, mask)
"""
KERNELS = {"gae", "moments", "pool", "returns", "scores", "spread", "standardise", "strays"}


def test_they_compile_for_gpus(tmp_path):
    """Typed, lowered and assembled for A100 and H100, which takes none, as triton_rows would launch them.

    In a process of its own, with a cache of its own: nothing compiled earlier may answer.
    """
    known = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = {f"{name}_kernel {capability}" for name in KERNELS for capability in (80, 90)}
    assert {*done.stdout.splitlines()} == wanted
    assert [*tmp_path.rglob("*.cubin")]
